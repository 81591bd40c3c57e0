"""What Raft peers may say to each other: msgpack maps of a closed list of types.

Everything a peer sends is checked here, field by field, before any of it is used: numbers
have ranges, entries follow each other, commands begin with a known byte. Unknown types,
missing and surplus fields are a ProtocolViolation.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgpack

from butterfly_cluster.journal import Entry
from butterfly_cluster.membership import MEMBERSHIP, NO_OP, REGULAR, parse_voter_change
from butterfly_core.errors import InvalidValue, ProtocolViolation
from butterfly_core.ids import parse_node_id

Message = dict[str, Any]

COMMAND_BYTES_MAX: Final = 1 << 20
BATCH_BYTES_MAX: Final = 4 << 20
SNAPSHOT_CHUNK_BYTES: Final = 1 << 20
MESSAGE_BYTES_MAX: Final = 16 << 20
ENTRIES_MAX: Final = 1 << 17
_INTEGER_MAX: Final = 1 << 53

_Check = Callable[[Any], bool]


def _number(value: Any) -> bool:
    return type(value) is int and 0 <= value < _INTEGER_MAX


def _flag(value: Any) -> bool:
    return type(value) is bool


def _name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 64


def _node_or_nobody(value: Any) -> bool:
    if value == "":
        return True
    try:
        return isinstance(value, str) and bool(parse_node_id(value))
    except InvalidValue:
        return False


def _chunk(value: Any) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], bytes)
        and len(value[0]) <= SNAPSHOT_CHUNK_BYTES
        and _flag(value[1])
        and _flag(value[2])
    )


def is_command(command: Any, kinds: tuple[int, ...] = (REGULAR, NO_OP, MEMBERSHIP)) -> bool:
    """True for bytes that may stand in the log: a known kind and a body of that kind."""
    if not isinstance(command, bytes) or not 1 <= len(command) <= COMMAND_BYTES_MAX + 1:
        return False
    kind = command[0]
    if kind not in kinds:
        return False
    if kind == NO_OP:
        return len(command) == 1
    try:
        if kind == MEMBERSHIP:
            parse_voter_change(command)
        else:
            json.loads(command[1:])
    except (InvalidValue, ValueError, RecursionError):
        return False
    return True


def _forwarded_command(value: Any) -> bool:
    return is_command(value, (REGULAR, NO_OP))


def _entries(value: Any) -> bool:
    if not isinstance(value, list) or len(value) > ENTRIES_MAX:
        return False
    index_before = term_before = None
    for entry in value:
        if not isinstance(entry, list) or len(entry) != 3:
            return False
        command, index, term = entry
        if not (is_command(command) and _number(index) and _number(term)):
            return False
        if index_before is not None and index != index_before + 1:
            return False
        if term_before is not None and term < term_before:
            return False
        index_before, term_before = index, term
    return True


_VOTE: Mapping[str, _Check] = {"term": _number, "last_log_index": _number, "last_log_term": _number}
_APPEND: Mapping[str, _Check] = {"term": _number, "commit_index": _number}
_ANSWERED: Mapping[str, _Check] = {"request_id": _number}

# A type may have several shapes; the names of the fields are pysyncobj's where it has one.
_SHAPES: Mapping[str, tuple[Mapping[str, _Check], ...]] = {
    "hello": ({"cluster_id": _name},),
    "ping": ({"leader": _node_or_nobody},),
    "stale": ({},),
    "request_vote": ({**_VOTE, "transfer": _flag},),
    "response_vote": ({"term": _number},),
    "pre_vote": ({**_VOTE, "round": _number},),
    "pre_vote_ok": ({"round": _number},),
    "append_entries": (
        {**_APPEND, "prevLogIdx": _number, "prevLogTerm": _number, "entries": _entries},
        {**_APPEND, "serialized": _chunk},
    ),
    "next_node_idx": ({"next_node_idx": _number, "reset": _flag, "success": _flag},),
    "apply_command": ({"command": _forwarded_command, **_ANSWERED},),
    "apply_command_response": (
        {**_ANSWERED, "log_idx": _number, "log_term": _number},
        {**_ANSWERED, "error": _number},
    ),
    "timeout_now": ({"term": _number},),
}
MESSAGE_TYPES: Final = frozenset(_SHAPES)


def encode_message(message: Mapping[str, Any]) -> bytes:
    """Write a message down; what it holds is the sender's business."""
    data: bytes = msgpack.packb(message)
    return data


def decode_message(data: bytes) -> Message:
    """Read and check one message. Raises ProtocolViolation naming what is wrong."""
    if len(data) > MESSAGE_BYTES_MAX:
        raise ProtocolViolation(f"a Raft message of {len(data)} bytes; {MESSAGE_BYTES_MAX} allowed")
    try:
        message = msgpack.unpackb(data, use_list=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolViolation(f"a Raft message that is not msgpack: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolViolation("a Raft message that is not a map")
    kind = message.get("type")
    shapes = _SHAPES.get(kind) if isinstance(kind, str) else None
    if shapes is None:
        raise ProtocolViolation(f"a Raft message of the unknown type {str(kind)[:40]!r}")
    if not any(_has_shape(message, shape) for shape in shapes):
        raise ProtocolViolation(f"a Raft message {kind!r} whose fields are wrong")
    if "entries" in message:
        message["entries"] = [Entry(*entry) for entry in message["entries"]]
        _check_place(message)
    return message


def _has_shape(message: Message, shape: Mapping[str, _Check]) -> bool:
    if len(message) != len(shape) + 2 or not _number(message.get("sender_term")):
        return False
    return all(name in message and check(message[name]) for name, check in shape.items())


def _check_place(message: Message) -> None:
    entries: list[Entry] = message["entries"]
    if entries and (
        entries[0].log_index != message["prevLogIdx"] + 1
        or entries[0].term < message["prevLogTerm"]
        or entries[-1].term > message["term"]
    ):
        raise ProtocolViolation("entries that do not follow the place they name")
