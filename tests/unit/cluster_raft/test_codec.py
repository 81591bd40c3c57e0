"""Nothing that a peer sends gets past the codec unless it is exactly what may be sent."""

import json
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from butterfly_cluster.journal import Entry
from butterfly_cluster.membership import VoterChange
from butterfly_cluster.raft_codec import (
    COMMAND_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    MESSAGE_TYPES,
    decode_message,
    encode_message,
    is_command,
)
from butterfly_core.errors import ProtocolViolation
from butterfly_core.ids import NodeId

A = NodeId("a" * 32)
VOTE = {"term": 3, "last_log_index": 4, "last_log_term": 2}
ENTRIES = [[b"\0{}", 5, 2], [b"\1", 6, 3], [b"\2" + VoterChange("add", A).encode(), 7, 3]]
APPEND = {"type": "append_entries", "term": 3, "commit_index": 2, "sender_term": 3}
GOOD: list[dict[str, Any]] = [
    {"type": "hello", "cluster_id": "x", "sender_term": 0},
    {"type": "ping", "leader": "", "sender_term": 0},
    {"type": "ping", "leader": A, "sender_term": 0},
    {"type": "stale", "sender_term": 9},
    {"type": "request_vote", **VOTE, "transfer": False, "sender_term": 3},
    {"type": "response_vote", "term": 3, "sender_term": 3},
    {"type": "pre_vote", **VOTE, "round": 77, "sender_term": 3},
    {"type": "pre_vote_ok", "round": 77, "sender_term": 3},
    {**APPEND, "prevLogIdx": 4, "prevLogTerm": 2, "entries": ENTRIES},
    {**APPEND, "serialized": None},
    {**APPEND, "serialized": [b"abc", True, False]},
    {
        "type": "next_node_idx",
        "next_node_idx": 4,
        "reset": False,
        "success": True,
        "sender_term": 3,
    },
    {"type": "apply_command", "command": b"\0{}", "request_id": 1, "sender_term": 3},
    {"type": "apply_command", "command": b"\1", "request_id": 1, "sender_term": 3},
    {"type": "apply_command_response", "request_id": 1, "error": 2, "sender_term": 3},
    {
        "type": "apply_command_response",
        "request_id": 1,
        "log_idx": 5,
        "log_term": 3,
        "sender_term": 3,
    },
    {"type": "timeout_now", "term": 3, "sender_term": 3},
]


@pytest.mark.parametrize("message", GOOD, ids=lambda message: message["type"])
def test_every_message_comes_through_as_it_was(message: dict[str, Any]) -> None:
    heard = decode_message(encode_message(message))
    expected = dict(message)
    if "entries" in message:
        expected["entries"] = [Entry(*entry) for entry in message["entries"]]

    assert heard == expected


def test_every_type_is_tried_above() -> None:
    assert {message["type"] for message in GOOD} == MESSAGE_TYPES


@pytest.mark.parametrize("message", GOOD, ids=lambda message: message["type"])
def test_a_missing_or_surplus_or_wrong_field_is_refused(message: dict[str, Any]) -> None:
    for name in message:
        without = {key: value for key, value in message.items() if key != name}
        for bad in (without, {**message, name: [{}]}, {**message, name: -1}):
            with pytest.raises(ProtocolViolation):
                decode_message(encode_message(bad))
    with pytest.raises(ProtocolViolation):
        decode_message(encode_message({**message, "more": 1}))


@pytest.mark.parametrize("number", [-1, 1 << 53, True, 1.0, "1", None])
def test_numbers_have_a_range(number: object) -> None:
    with pytest.raises(ProtocolViolation):
        decode_message(msgpack.packb({"type": "response_vote", "term": number, "sender_term": 1}))


@pytest.mark.parametrize(
    "command",
    [
        *(b"", b"\3\0", b"\0", b"\0not json", b"\1x", b"\2{}", b"\xff{}", "\0{}", None, 5),
        b'\2{"op":"add","id":"short"}',
        b"\0" + b" " * COMMAND_BYTES_MAX + b"1",
        b"\0" + b"[" * 9000,
    ],
)
def test_a_command_of_another_kind_is_refused(command: object) -> None:
    assert not is_command(command)


def test_a_change_of_voters_is_never_forwarded() -> None:
    change = b"\2" + VoterChange("add", A).encode()
    message = {"type": "apply_command", "command": change, "request_id": 1, "sender_term": 3}

    with pytest.raises(ProtocolViolation):
        decode_message(encode_message(message))


@pytest.mark.parametrize(
    "entries",
    [
        [[b"\0{}", 5, 2], [b"\0{}", 7, 2]],
        [[b"\0{}", 6, 2]],
        [[b"\0{}", 5, 2], [b"\0{}", 6, 1]],
        [[b"\0{}", 5, 1]],
        [[b"\0{}", 5, 4]],
        [[b"\0{}", 5]],
    ],
    ids=["gap", "not after its place", "term falls", "term before", "term of later", "short"],
)
def test_entries_that_do_not_follow_are_refused(entries: list[Any]) -> None:
    with pytest.raises(ProtocolViolation):
        decode_message(
            encode_message({**APPEND, "prevLogIdx": 4, "prevLogTerm": 2, "entries": entries})
        )


def test_a_message_too_big_is_refused_unread() -> None:
    with pytest.raises(ProtocolViolation, match="allowed"):
        decode_message(bytes(MESSAGE_BYTES_MAX + 1))


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        message = decode_message(data)
    except ProtocolViolation:
        return
    assert message["type"] in MESSAGE_TYPES


_anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.binary(max_size=9) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    base=st.sampled_from(GOOD),
    changes=st.dictionaries(
        st.sampled_from(sorted({name for message in GOOD for name in message})), _anything
    ),
)
def test_any_map_is_read_or_refused(base: dict[str, Any], changes: dict[str, Any]) -> None:
    try:
        message = decode_message(msgpack.packb({**base, **changes}))
    except ProtocolViolation:
        return
    assert message["type"] in MESSAGE_TYPES
    for entry in message.get("entries", ()):
        assert is_command(entry.command)


def test_a_change_of_voters_survives_the_log() -> None:
    body = VoterChange("rem", A).encode()

    assert json.loads(body) == {"op": "rem", "id": A}
