"""The picture of a /status, also of one that is odd."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from butterfly.admin.status import picture
from butterfly.admin.status_view import error_lines, members_table, moved_text, summary_lines

NODE_A = "a" * 32
NODE_B = "b" * 32
MEMBER = {
    "node_id": NODE_A,
    "address": "127.0.0.1:7000",
    "http_address": "127.0.0.1:8080",
    "role": "coordinator",
    "voter": True,
    "alive": True,
    "state": "LOADING",
    "phase": "loading_weights",
    "progress_percent": 45.2,
    "layers": "0-26",
    "device": "cpu",
    "bytes_done": 512,
    "bytes_total": 1024,
    "bytes_from_source": 512,
    "bytes_from_cache": 0,
}
STATUS: dict[str, Any] = {
    "state": "LOADING",
    "phase": "loading_weights",
    "progress_percent": 45.2,
    "eta_seconds": 68,
    "cluster_size": 2,
    "coordinator": NODE_A,
    "node_id": NODE_B,
    "cluster_name": "my-cluster",
    "epoch": 4,
    "term": 2,
    "model": {"name": "llama", "layer_count": 80, "total_bytes": 1 << 30, "source": "s3://m/l"},
    "members": [MEMBER, {**MEMBER, "node_id": NODE_B, "alive": False}],
    "errors": [{"code": "load_failed", "message": "short", "node_id": NODE_B, "tensor": "norm.w"}],
    "version": "0.1.0",
    "uptime_seconds": 61,
}


def rendered(what: RenderableType) -> str:
    heard = io.StringIO()
    Console(file=heard, width=160).print(what)
    return heard.getvalue()


def test_one_look_tells_cluster_model_members_and_errors() -> None:
    shown = rendered(picture(STATUS))

    for expected in (
        *("my-cluster: LOADING (loading_weights)", "2 nodes", "coordinator aaaaaaaa", "epoch 4"),
        *("model llama: 80 layers, 1.00 GiB, from s3://m/l, not proven yet", "1 min 08 s left"),
        *("aaaaaaaa *", "LOADING loading_weights", "45 %", "0-26", "512 B of 1.00 KiB"),
        *("load_failed [bbbbbbbb, norm.w]: short", "DEAD"),
    ):
        assert expected in shown


def test_an_operational_cluster_shows_the_proven_root_and_no_progress() -> None:
    lines = summary_lines({**STATUS, "state": "OPERATIONAL", "merkle_root": "0123456789abcdef" * 4})

    assert any("root 0123456789abcdef" in line for line in lines)
    assert not any("progress" in line for line in lines)


def test_markup_and_control_characters_of_others_are_only_text() -> None:
    evil = {"code": "[red]x[/]", "message": "\x1b[2Jgone\x07"}
    shown = rendered(picture({**STATUS, "errors": [evil], "cluster_name": "[bold]b[/bold]"}))

    assert "[red]x[/]: [2Jgone" in shown
    assert "[bold]b[/bold]" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("member", "text"),
    [
        ({}, "-"),
        ({"bytes_done": 0, "bytes_total": 0}, "-"),
        ({"bytes_done": 1024, "bytes_total": 1024}, "1.00 KiB"),
        (
            {"bytes_done": 1024, "bytes_total": 2048, "bytes_from_cache": 512},
            "1.00 KiB of 2.00 KiB (512 B cached)",
        ),
    ],
)
def test_moved_bytes(member: dict[str, Any], text: str) -> None:
    assert moved_text(member) == text


TEXTS = ("", "x", "[red]", "\x1b[2J", NODE_A, "é🦋", "\ud800")
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from([*MEMBER]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*STATUS]), anything))
def test_no_answer_is_so_odd_that_it_cannot_be_shown(status: dict[str, Any]) -> None:
    assert rendered(members_table(status))
    assert summary_lines(status)
    assert isinstance(error_lines(status), list)


def test_a_load_shows_a_bar_its_pace_and_its_end() -> None:
    pace = {"bytes_per_second": 1 << 20, "eta_seconds": 68.0}
    member = {**MEMBER, **pace, "progress_percent": 99.96, "bytes_from_cache": 256}
    shown = rendered(picture({**STATUS, "members": [member], "load": pace}))

    for expected in (
        "█████████░ 99 %",
        "512 B of 1.00 KiB (256 B cached), 1.00 MiB/s, 1 min 08 s left",
        "progress 45 %, 1.00 MiB/s, about 1 min 08 s left",
    ):
        assert expected in shown


@pytest.mark.parametrize("odd", [None, "x", float("nan"), float("inf"), -5, 250, True])
def test_odd_numbers_of_a_load_hide_nothing_else(odd: object) -> None:
    member = {**MEMBER, "progress_percent": odd, "bytes_per_second": odd, "eta_seconds": odd}
    shown = rendered(picture({**STATUS, "members": [member], "load": {"bytes_per_second": odd}}))

    for expected in ("progress 45 %", "about 1 min 08 s left", "512 B of 1.00 KiB", "load_failed"):
        assert expected in shown


def test_what_the_weights_were_proven_against_is_shown_with_a_short_key() -> None:
    trust = f"verified against the manifest, signed by {'c' * 64}"
    shown = rendered(picture({**STATUS, "merkle_root": "d" * 64, "trust": trust}))

    told = f"root {'d' * 16} (verified against the manifest, signed by {'c' * 16})"
    assert told in " ".join(shown.split())
