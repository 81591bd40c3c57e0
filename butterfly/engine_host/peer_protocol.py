"""What engines of different nodes say to each other about weights, over a data link. Pure.

One request, one answer, again and again; metadata is a msgpack list, the payload a leaf's bytes:

    [1, digests]                        which of these tensors do you hold?  (32 bytes each)
    [2, [[tensor, index, leaf], …]]     give me any one of these leaves
    [1, holdings]                       one byte per tensor: no, loading, held
    [2, answer, position]               with the leaf's bytes as payload if answer says so
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgpack

from butterfly_core.errors import ProtocolViolation
from butterfly_weights.merkle import LEAF_BYTES
from butterfly_weights.peer_choice import Holding
from butterfly_weights.peers import (
    LEAVES_WANTED_MAX,
    TENSORS_ASKED_MAX,
    Answer,
    Given,
    WantedLeaf,
)

FRAME_BYTES_MAX: Final = LEAF_BYTES + (1 << 20)
_DIGEST_BYTES: Final = 32
_INDEX_MAX: Final = 1 << 40
_HAVE: Final = 1
_GIVE: Final = 2
_T = TypeVar("_T", Holding, Answer)


@dataclass(frozen=True, slots=True)
class Have:
    """Which of these tensors do you hold?"""

    tensors: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Give:
    """Give me any one of these leaves."""

    wanted: tuple[WantedLeaf, ...]


Request = Have | Give


def pack_have(tensors: Sequence[bytes]) -> bytes:
    return _pack([_HAVE, b"".join(tensors)])


def pack_give(wanted: Sequence[WantedLeaf]) -> bytes:
    return _pack([_GIVE, [[leaf.tensor, leaf.index, leaf.leaf] for leaf in wanted]])


def pack_holdings(holdings: Sequence[Holding]) -> bytes:
    return _pack([_HAVE, bytes(holdings)])


def pack_given(answer: Answer, position: int = 0) -> bytes:
    return _pack([_GIVE, int(answer), position])


def parse_request(meta: bytes, payload_bytes: int) -> Request:
    """Raises ProtocolViolation."""
    match _unpack(meta):
        case [1, bytes() as joined] if not payload_bytes:
            return Have(_digests(joined))
        case [2, [*leaves]] if not payload_bytes and 0 < len(leaves) <= LEAVES_WANTED_MAX:
            return Give(tuple(_wanted(leaf) for leaf in leaves))
    raise ProtocolViolation("not a request for weights")


def parse_holdings(meta: bytes, count: int) -> tuple[Holding, ...]:
    """What is held of ``count`` tensors. Raises ProtocolViolation."""
    match _unpack(meta):
        case [1, bytes() as told] if len(told) == count:
            return tuple(_one_of(Holding, number) for number in told)
    raise ProtocolViolation(f"not an answer about {count} tensors")


def parse_given(meta: bytes, payload: memoryview, count: int) -> Given:
    """The answer to a request for ``count`` leaves. Raises ProtocolViolation."""
    match _unpack(meta):
        case [2, int(number), int(position)] if 0 <= position < count:
            answer = _one_of(Answer, number)
            if (answer is Answer.LEAF) == bool(payload.nbytes) and payload.nbytes <= LEAF_BYTES:
                return Given(answer, position, payload)
    raise ProtocolViolation(f"not an answer to a request for {count} leaves")


def _pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _unpack(meta: bytes) -> Any:
    try:
        return msgpack.unpackb(meta)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolViolation(f"not a message about weights: {error}"[:200]) from None


def _digests(joined: bytes) -> tuple[bytes, ...]:
    if len(joined) % _DIGEST_BYTES or len(joined) > _DIGEST_BYTES * TENSORS_ASKED_MAX:
        raise ProtocolViolation(f"{len(joined)} bytes are no list of tensors' digests")
    starts = range(0, len(joined), _DIGEST_BYTES)
    return tuple(joined[start : start + _DIGEST_BYTES] for start in starts)


def _wanted(leaf: object) -> WantedLeaf:
    match leaf:
        case [bytes() as tensor, int(index), bytes() as digest] if (
            len(tensor) == len(digest) == _DIGEST_BYTES
            and type(index) is int
            and 0 <= index < _INDEX_MAX
        ):
            return WantedLeaf(tensor, index, digest)
    raise ProtocolViolation("a leaf is wanted that cannot be")


def _one_of(kind: type[_T], number: object) -> _T:
    if type(number) is int and number in [member.value for member in kind]:
        return kind(number)
    raise ProtocolViolation(f"{number!r} is no {kind.__name__}"[:200])
