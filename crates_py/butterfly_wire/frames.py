"""Frames of a control connection as bytes, and bytes as frames; no socket, no clock.

A frame is a header of 16 bytes (little-endian), metadata (a msgpack map, or nothing) and a raw
payload::

    offset  0        2      3       4           8              12
            b"BF"    kind   0       exchange    metadata       payload
            magic    u8     u8      u32         length u32     length u32

``FrameDecoder`` works like h11's: bytes are put in as they come, frames are taken out one by
one, and how the bytes were split makes no difference.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import msgpack

from butterfly_core.errors import InvalidValue, ProtocolViolation

_HEADER = struct.Struct("<2sBBIII")
HEADER_BYTES = _HEADER.size
_MAGIC = b"BF"
EXCHANGE_MAX = 0xFFFFFFFF
_COMPACT_BYTES = 1 << 16


class FrameKind(IntEnum):
    """What a frame says. Exchange 0 is the connection itself."""

    HELLO = 1
    CALL = 2
    OPEN = 3
    """Start a stream."""
    REPLY = 4
    ITEM = 5
    END = 6
    ERROR = 7
    CANCEL = 8
    CREDIT = 9
    """The consumer of a stream took so many bytes; so many more may follow."""
    PING = 10
    MESSAGE = 11
    """One message of a channel; its payload, no metadata."""


_KINDS = {int(kind): kind for kind in FrameKind}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, parsed."""

    kind: FrameKind
    exchange: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    payload: bytes = b""
    wire_bytes: int = HEADER_BYTES
    """Its whole length on the wire; what flow control counts."""


def encode_frame(
    kind: FrameKind,
    exchange: int = 0,
    meta: Mapping[str, Any] | None = None,
    payload: bytes = b"",
    *,
    bytes_max: int,
) -> bytes:
    """The bytes of one frame. Raises InvalidValue for what cannot be sent."""
    packed = pack_map(meta) if meta else b""
    length = len(packed) + len(payload)
    if length > bytes_max:
        raise InvalidValue(
            f"a {kind.name} frame of {length} bytes is over the limit of {bytes_max} bytes; "
            "send less at once or raise frame_bytes_max"
        )
    header = _HEADER.pack(_MAGIC, kind, 0, exchange, len(packed), len(payload))
    return b"".join((header, packed, payload))


def pack_map(value: Mapping[str, Any]) -> bytes:
    """Msgpack of a map with text keys. Raises InvalidValue for a value it cannot hold."""
    try:
        return bytes(msgpack.packb(value, use_bin_type=True, strict_types=False))
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidValue(f"a message cannot be encoded: {error}") from error


def unpack_map(packed: bytes) -> dict[str, Any]:
    """The map in these bytes. Raises ProtocolViolation for anything else."""
    try:
        value = msgpack.unpackb(packed, raw=False, strict_map_key=False, use_list=True)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolViolation(f"metadata is not msgpack: {error}") from error
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ProtocolViolation("metadata is not a map with text keys")
    return value


class FrameDecoder:
    """Turns received bytes into frames, whatever the split.

    ``bytes_max`` bounds metadata and payload of the next frame together; it may be raised
    between frames (small until the peer has said hello). After a ProtocolViolation the
    stream has no meaning any more: every further call raises it again.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._buffer = bytearray()
        self._start = 0
        self._broken: ProtocolViolation | None = None

    @property
    def buffered_bytes(self) -> int:
        """Bytes put in and not yet taken out as frames."""
        return len(self._buffer) - self._start

    def receive(self, data: bytes) -> None:
        """Put in what came."""
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """Take out one frame; None until it is complete. Raises ProtocolViolation."""
        if self._broken is not None:
            raise self._broken
        try:
            return self._parse()
        except ProtocolViolation as error:
            self._broken = error
            raise

    def _parse(self) -> Frame | None:
        start = self._start
        if self.buffered_bytes < HEADER_BYTES:
            return None
        magic, code, zero, exchange, meta_bytes, payload_bytes = _HEADER.unpack_from(
            self._buffer, start
        )
        kind = _KINDS.get(code)
        if magic != _MAGIC or zero != 0 or kind is None:
            raise ProtocolViolation(
                f"not a frame header: {bytes(self._buffer[start : start + HEADER_BYTES]).hex()}"
            )
        length = meta_bytes + payload_bytes
        if length > self.bytes_max:
            raise ProtocolViolation(
                f"a {kind.name} frame announces {length} bytes; the limit is {self.bytes_max}"
            )
        whole = HEADER_BYTES + length
        if self.buffered_bytes < whole:
            return None
        body = start + HEADER_BYTES
        meta = bytes(self._buffer[body : body + meta_bytes])
        payload = bytes(self._buffer[body + meta_bytes : start + whole])
        self._consume(whole)
        return Frame(kind, exchange, unpack_map(meta) if meta else {}, payload, whole)

    def _consume(self, count: int) -> None:
        self._start += count
        if self._start == len(self._buffer) or self._start > _COMPACT_BYTES:
            del self._buffer[: self._start]
            self._start = 0
