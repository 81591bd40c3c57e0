"""When a starting cluster counts as ready, and how its progress is told."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from butterfly.admin.up_layout import NodeLayout
from butterfly.admin.up_progress import Bars, Glimpse, Lines, glimpse_of, is_ready, progress_view

NODE = NodeLayout("node-1", "coordinator", 7000, 8080, Path("/nowhere"))


def status(state: str, *members: tuple[str, str | None], size: int = 2) -> dict[str, Any]:
    return {
        "state": state,
        "phase": "serving",
        "progress_percent": 50,
        "cluster_size": size,
        "node_id": "n0",
        "members": [
            {"node_id": f"n{i}", "state": member_state, "layers": layers}
            for i, (member_state, layers) in enumerate(members)
        ],
    }


OPERATIONAL = status("OPERATIONAL", ("OPERATIONAL", "0-1"), ("OPERATIONAL", "2-3"))
SPARE = status("OPERATIONAL", ("OPERATIONAL", "0-3"), ("JOINING", None))
WAITING = status("OPERATIONAL", ("OPERATIONAL", "0-1"), ("READY", "2-3"))


@pytest.mark.parametrize(
    ("answers", "ready"),
    [
        ([OPERATIONAL, OPERATIONAL], True),
        ([SPARE, status("JOINING", ("OPERATIONAL", "0-3"), ("JOINING", None))], True),
        ([WAITING, OPERATIONAL], True),
        ([WAITING, WAITING], False),
        ([OPERATIONAL, status("COLD", size=1)], False),
        ([OPERATIONAL], False),
    ],
)
def test_ready_is_when_all_joined_and_all_holders_of_layers_serve(
    answers: list[dict[str, Any]], ready: bool
) -> None:
    assert is_ready([glimpse_of(answer) for answer in answers], 2) is ready


def test_a_node_that_does_not_listen_yet_is_not_ready() -> None:
    assert not is_ready([glimpse_of(OPERATIONAL), Glimpse()], 2)


def test_not_admitting_yet_is_no_error_of_a_starting_cluster() -> None:
    errors = [
        {"code": "not_admitting", "message": "no quorum"},
        {"code": "no_plan", "message": "x"},
    ]
    seen = glimpse_of({**OPERATIONAL, "errors": errors})

    assert seen.errors == ("no_plan: x",)
    assert seen.waits_for == "not_admitting: no quorum"


def test_a_glimpse_of_nonsense_is_a_glimpse() -> None:
    assert glimpse_of({"members": 7, "progress_percent": "x"}).percent == 0


def screen(heard: io.StringIO, *, terminal: bool) -> Console:
    return Console(file=heard, force_terminal=terminal, width=100)


def test_a_log_gets_one_line_per_phase() -> None:
    heard = io.StringIO()
    with progress_view(screen(heard, terminal=False), [NODE]) as view:
        for phase in ("election", "election", "loading_weights", "loading_weights"):
            view.show(NODE, Glimpse("JOINING", phase, 10))

    assert isinstance(view, Lines)
    assert heard.getvalue().splitlines() == [
        "node-1 coordinator: JOINING election 10 %",
        "node-1 coordinator: JOINING loading_weights 10 %",
    ]


def test_a_terminal_gets_bars() -> None:
    heard = io.StringIO()
    with progress_view(screen(heard, terminal=True), [NODE]) as view:
        view.show(NODE, Glimpse("LOADING", "loading_weights", 45, "1.00 KiB of 2.00 KiB"))

    assert isinstance(view, Bars)
    shown = heard.getvalue()
    assert "45 %" in shown
    assert "loading_weights 1.00 KiB of 2.00 KiB" in shown
