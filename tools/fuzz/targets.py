"""Everything that reads bytes from a peer, a disk or a model's source: how to feed it, and what it
may raise.

Used by the coverage-guided runs (``run.py``) and by the hypothesis tests. A target returns for
bytes it accepts, raises one of its documented errors for all others, and never anything else.
Bytes behind a checksum are also tried with the right one, or nothing would get past it.
"""

import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgpack

from butterfly.engine_host.peer_protocol import (
    pack_give,
    pack_given,
    pack_have,
    pack_holdings,
    parse_given,
    parse_holdings,
    parse_request,
)
from butterfly.node.reports import parse_report, parse_reports
from butterfly_cluster import journal_format, snapshot
from butterfly_cluster.commands import decode_command
from butterfly_cluster.founding_messages import (
    proposal_from_map,
    verdict_from_map,
    whoami_from_map,
)
from butterfly_cluster.journal_format import DamagedLog, Entry
from butterfly_cluster.membership import parse_voter_change
from butterfly_cluster.raft_codec import decode_message, encode_message, is_command
from butterfly_core.errors import InvalidValue, ModelError, ProtocolViolation
from butterfly_weights.peer_choice import Holding
from butterfly_weights.peers import LEAVES_WANTED_MAX, TENSORS_ASKED_MAX, Answer, WantedLeaf
from butterfly_wire.frames import FrameDecoder, FrameKind, encode_frame, unpack_map
from butterfly_wire.protocol import body_of, error_from_map, parse_hello, text_of
from butterfly_wire.sealing import make_seal
from butterfly_wire.tickets import MODES, DataTicket, new_ticket
from tools.fuzz import trust
from tools.fuzz.target import Target
from tools.fuzz.weights_targets import WEIGHTS_TARGETS

_FRAME_BYTES_MAX: Final = 1 << 16
_NODE: Final = "a" * 32


def _frames(data: bytes) -> None:
    """The same frames come out however the bytes were split."""
    whole, split = FrameDecoder(_FRAME_BYTES_MAX), FrameDecoder(_FRAME_BYTES_MAX)
    cut = data[0] % (len(data) + 1) if data else 0
    results = []
    for decoder, portions in ((whole, [data]), (split, [data[:cut], data[cut:]])):
        found: list[object] = []
        try:
            for portion in portions:
                decoder.receive(portion)
                while (frame := decoder.next_frame()) is not None:
                    found.append(frame)
        except ProtocolViolation:
            found.append("violation")
        results.append(found)
        if decoder.buffered_bytes > len(data):
            raise AssertionError("a decoder holds more than it was given")
    if results[0] != results[1]:
        raise AssertionError(f"the split at {cut} changes what is read")


def _all_of(*readers: Callable[[Any], object]) -> Callable[[bytes], None]:
    """Give one map to several readers; each must accept it or raise its error."""

    def read(data: bytes) -> None:
        fields = unpack_map(data)
        for reader in readers:
            try:
                reader(fields)
            except (ProtocolViolation, InvalidValue):
                continue

    return read


def _commands(data: bytes) -> None:
    is_command(data)
    for reader in (decode_command, parse_voter_change):
        try:
            reader(data)
        except (ProtocolViolation, InvalidValue):
            continue


def _journal(data: bytes) -> None:
    """As a whole file, and as records with the right checksums."""
    for content in (data, journal_format.MAGIC + data, b"".join(_records(data))):
        try:
            journal_format.read_journal(content)
        except DamagedLog:
            continue


def _records(data: bytes) -> Iterator[bytes]:
    yield journal_format.MAGIC
    while data:
        kind, length = data[0] % 6, data[1] if len(data) > 1 else 0
        payload, data = data[2 : 2 + length], data[2 + length :]
        checksum = zlib.crc32(payload, zlib.crc32(struct.pack("<IB", len(payload), kind)))
        yield struct.pack("<IIB", len(payload), checksum, kind) + payload


def _snapshot(data: bytes) -> None:
    sealed = snapshot.MAGIC + struct.pack("<QI", len(data), zlib.crc32(data)) + data
    for content in (data, sealed):
        try:
            snapshot.decode_snapshot(content)
        except InvalidValue:
            continue


class _Bytes:
    """A source that ends."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(bytearray(data))

    def take(self, count: int) -> memoryview:
        if count > len(self._data):
            raise EOFError
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def read_into(self, view: memoryview) -> None:
        view[:] = self.take(len(view))


def _sealing(data: bytes) -> None:
    """Nothing that was not sealed with the key is opened."""
    for mode in MODES:
        payload = memoryview(bytearray(len(data) // 2))
        try:
            make_seal(mode, bytes(32), 1 << 20).unwrap(0, b"h", 3, payload, _Bytes(data))
        except (ProtocolViolation, EOFError):
            continue
        if mode != "plain":
            raise AssertionError(f"{mode} opened what nobody sealed")


def _tickets(data: bytes) -> None:
    DataTicket.from_map(unpack_map(data))


def _peer_weights(data: bytes) -> None:
    """As a question, and as each kind of answer; whatever is accepted is within the limits."""
    readers: tuple[Callable[[bytes], object], ...] = (
        lambda meta: parse_request(meta, 0),
        lambda meta: parse_holdings(meta, 2),
        lambda meta: parse_given(meta, memoryview(b"leaf"), 2),
        lambda meta: parse_given(meta, memoryview(b""), 2),
    )
    for reader in readers:
        try:
            found = reader(data)
        except ProtocolViolation:
            continue
        asked = len(getattr(found, "tensors", ())), len(getattr(found, "wanted", ()))
        if asked[0] > TENSORS_ASKED_MAX or asked[1] > LEAVES_WANTED_MAX:
            raise AssertionError(f"a request for {asked} was accepted")


def _pack(value: object) -> bytes:
    return bytes(msgpack.packb(value))


_WHOAMI = {
    "node_id": _NODE,
    "cluster_name": "c",
    "address": "h:1",
    "cluster_id": _NODE,
    "founders": [_NODE],
    "voters": [_NODE],
    "members": {_NODE: "h:1"},
    "seeds": ["h:1"],
    "promised_to": None,
    "promised_number": "1",
}
_PROPOSAL = {
    "cluster_name": "c",
    "seeds": ["h:1"],
    "voters": [_NODE],
    "candidate": _NODE,
    "number": "1",
}
_APPEND = {
    "type": "append_entries",
    "sender_term": 1,
    "term": 1,
    "commit_index": 1,
    "prevLogIdx": 1,
    "prevLogTerm": 0,
    "entries": [[b"\x00{}", 2, 1], [b'\x02{"op":"add","id":"' + _NODE.encode() + b'"}', 3, 1]],
}
_VOTE = {
    "type": "request_vote",
    "sender_term": 2,
    "term": 2,
    "last_log_index": 1,
    "last_log_term": 1,
    "transfer": False,
}
_ERROR = {"classes": ["NotServing"], "message": "m", "phase": "p", "retry_after_seconds": 1}
_SNAPSHOT = {
    "state": b"s",
    "previous": [b"\x01", 1, 0],
    "last": [b"\x01", 2, 1],
    "voters": [_NODE],
}

TARGETS: Final[Mapping[str, Target]] = {
    "frames": Target(
        _frames,
        (),
        (
            encode_frame(FrameKind.CALL, 1, {"method": "m", "body": {}}, b"p", bytes_max=999),
            encode_frame(FrameKind.PING, bytes_max=999) * 2,
        ),
    ),
    "protocol": Target(
        _all_of(parse_hello, error_from_map, body_of, lambda m: text_of(m, "method")),
        (ProtocolViolation,),
        (
            _pack({"version": 1, "cluster_name": "c", "node_id": _NODE, "purpose": "p"}),
            _pack(_ERROR),
        ),
    ),
    "tickets": Target(_tickets, (ProtocolViolation,), (_pack(new_ticket("aead").to_map()),)),
    "sealing": Target(_sealing, (), (bytes(64),)),
    "raft_codec": Target(
        decode_message, (ProtocolViolation,), (encode_message(_APPEND), encode_message(_VOTE))
    ),
    "commands": Target(
        _commands, (), (b"\x00{}", b"\x01", b'\x02{"op":"add","id":"' + _NODE.encode() + b'"}')
    ),
    "founding": Target(
        _all_of(whoami_from_map, proposal_from_map, verdict_from_map),
        (ProtocolViolation,),
        (_pack(_WHOAMI), _pack(_PROPOSAL), _pack({"granted": True, "reason": "r"})),
    ),
    "reports": Target(
        _all_of(parse_report, parse_reports),
        (ProtocolViolation,),
        (_pack({"state": "COLD", "phase": "p", "lost": ["x"]}), _pack({"reports": {_NODE: {}}})),
    ),
    "peer_weights": Target(
        _peer_weights,
        (),
        (
            pack_have([bytes(32)]),
            pack_give([WantedLeaf(bytes(32), 1, bytes(32))]),
            pack_holdings([Holding.NO, Holding.HELD]),
            pack_given(Answer.LEAF, 1),
            pack_given(Answer.BUSY),
        ),
    ),
    "journal": Target(
        _journal,
        (),
        (
            journal_format.whole_journal(1, 1, _NODE, [Entry(b"\x01", 2, 1)]),
            b"\x03\x10" + bytes(16),
            b"\x01\x11" + bytes(17),
            b"\x02\x08" + bytes(8),
        ),
    ),
    "snapshot": Target(_snapshot, (), (_pack(_SNAPSHOT),)),
    **WEIGHTS_TARGETS,
    "proof": Target(trust.read_proof, (ModelError,), trust.PROOFS),
    "signature": Target(trust.read_signature, (), trust.SIGNATURES),
}
