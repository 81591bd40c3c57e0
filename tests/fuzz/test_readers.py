"""Every reader of foreign bytes: any bytes are accepted or refused as documented."""

import json
import os
import pickle
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.needs import need
from tools.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
BYTES_MAX = 32 << 20

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=40)
    | st.binary(max_size=40)
    | st.just("a" * 32),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=12) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(autouse=True)
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("something tried to unpickle")

    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)


FOUND = [
    ("journal", b"\x01\x00"),  # a record with a right checksum that is too short for its type
    ("journal", b"\x03\x11" + bytes(16) + b"\xff"),  # a vote that is no text
    ("http", b"HTTP/1.1 200 OK\r\nETag: a\r\nContent-Length: \xb220\r\n\r\n"),  # no number
    ("snapshot", msgpack.packb({"state": 1 << 50})),  # a state of so many zeros
]


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_once_stays_mended(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
def test_the_examples_of_a_reader_are_read(name: str) -> None:
    for seed in TARGETS[name].seeds:
        assert TARGETS[name](seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=600))
def test_any_bytes_are_read_or_refused(name: str, data: bytes) -> None:
    TARGETS[name](data)


@pytest.mark.parametrize("name", TARGETS)
@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(choice=st.data())
def test_a_changed_example_is_read_or_refused(name: str, choice: st.DataObject) -> None:
    data = bytearray(choice.draw(st.sampled_from(TARGETS[name].seeds)))
    for _ in range(choice.draw(st.integers(1, 4))):
        where = choice.draw(st.integers(0, len(data)))
        data[where : where + choice.draw(st.integers(0, 4))] = choice.draw(st.binary(max_size=8))
    TARGETS[name](bytes(data))


def _maps(data: bytes) -> dict[Any, Any] | None:
    try:
        found = msgpack.unpackb(data, strict_map_key=False)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


MAPPED = [name for name, t in TARGETS.items() if all(_maps(seed) is not None for seed in t.seeds)]


@pytest.mark.parametrize("name", MAPPED)
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(choice=st.data())
def test_a_map_with_any_other_value_is_read_or_refused(name: str, choice: st.DataObject) -> None:
    fields = dict(_maps(choice.draw(st.sampled_from(TARGETS[name].seeds))) or {})
    for key in choice.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=3)):
        fields[key] = choice.draw(values)
    tracemalloc.start()
    try:
        TARGETS[name](msgpack.packb(fields))
        assert tracemalloc.get_traced_memory()[1] < BYTES_MAX
    finally:
        tracemalloc.stop()


def _document(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


WRITTEN = [
    name for name, t in TARGETS.items() if any(_document(seed) is not None for seed in t.seeds)
]
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["F32", "BF16", "../x", "/etc/passwd", 1 << 62, -1, 16, 32]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)


def _spoil(value: Any, choice: st.DataObject) -> Any:
    """Another value somewhere in a JSON document."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = choice.draw(st.sampled_from(keys))
    if isinstance(value[key], dict | list) and value[key] and choice.draw(st.booleans()):
        changed = _spoil(value[key], choice)
    else:
        changed = choice.draw(plain)
    copy = value.copy()
    copy[key] = changed
    return copy


@pytest.mark.parametrize("name", WRITTEN)
@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(choice=st.data())
def test_a_document_with_any_other_value_is_read_or_refused(
    name: str, choice: st.DataObject
) -> None:
    document = next(d for d in map(_document, TARGETS[name].seeds) if d is not None)
    for _ in range(choice.draw(st.integers(1, 3))):
        document = _spoil(document, choice) if document else document
    TARGETS[name](json.dumps(document).encode())


GUIDED = ("frames", "raft_codec", "peer_weights")
"""Of the targets: each costs seconds to begin, and hypothesis has tried them all above."""


def test_a_short_guided_run_breaks_nothing(tmp_path: Path) -> None:
    need(find_spec("atheris") is not None, "atheris, of the development environment")
    own = Path(sys.executable).parent  # its python, whether the environment is active or not
    ran = subprocess.run(
        [str(ROOT / "tools" / "fuzz" / "run.sh"), "1", *GUIDED],
        env={**os.environ, "FUZZ_DIR": str(tmp_path), "PATH": f"{own}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert set(GUIDED) == {folder.name for folder in tmp_path.iterdir()}
