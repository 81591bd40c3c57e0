"""What travels between the stages of a pipeline beside the activations: one step, its answer.

A message is msgpack of a short list whose first item says its kind; runs of ids are packed as
little-endian 32-bit words, because a step may carry thousands of them.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from butterfly_core.errors import ButterflyError, ProtocolViolation
from butterfly_core.generation import SamplingParams

STEP_KIND = "step2"
TOKENS_KIND = "tokens1"
MESSAGE_BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class SequenceStep:
    """What one step does for one sequence: its tokens [start, start + length).

    ``block_table`` names the KV blocks of the positions from 0 on. With ``sampling`` the last
    of these tokens is followed by a new one, at position ``start + length``. ``one_by_one``:
    an earlier step sampled these tokens, so each was computed alone and rounds alike only if
    it is attended alone again.
    """

    sequence_id: int
    start: int
    length: int
    block_table: tuple[int, ...]
    sampling: SamplingParams | None = None
    one_by_one: bool = False

    @property
    def stop(self) -> int:
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class StepBatch:
    """One step of a pipeline. ``token_ids`` holds the tokens of all sequences, in their order."""

    epoch: int
    step_id: int
    token_ids: tuple[int, ...]
    sequences: tuple[SequenceStep, ...]

    @property
    def sampled_count(self) -> int:
        """How many tokens the last stage sends back."""
        return sum(1 for sequence in self.sequences if sequence.sampling is not None)

    def encode(self) -> bytes:
        sequences = [_sequence_to_list(sequence) for sequence in self.sequences]
        words = _pack_words(self.token_ids)
        message: bytes = msgpack.packb([STEP_KIND, self.epoch, self.step_id, words, sequences])
        return message

    @staticmethod
    def decode(message: bytes) -> "StepBatch":
        """Raises ProtocolViolation for anything ``encode`` cannot have written."""
        try:
            epoch, step_id, words, items = _unpack(message, STEP_KIND)
            sequences = tuple(_sequence_from_list(item) for item in items)
            batch = StepBatch(_count(epoch), _count(step_id), _unpack_words(words), sequences)
        except (ValueError, TypeError, KeyError, struct.error, msgpack.UnpackException) as error:
            raise ProtocolViolation(f"a malformed step message: {error}") from error
        _check_lengths(batch)
        return batch


@dataclass(frozen=True, slots=True)
class TokensMessage:
    """The last stage's answer to one step: a token for each sequence that asked for one."""

    epoch: int
    step_id: int
    token_ids: tuple[int, ...]

    def encode(self) -> bytes:
        words = _pack_words(self.token_ids)
        message: bytes = msgpack.packb([TOKENS_KIND, self.epoch, self.step_id, words])
        return message

    @staticmethod
    def decode(message: bytes) -> "TokensMessage":
        """Raises ProtocolViolation for anything ``encode`` cannot have written."""
        try:
            epoch, step_id, words = _unpack(message, TOKENS_KIND)
            return TokensMessage(_count(epoch), _count(step_id), _unpack_words(words))
        except (ValueError, TypeError, KeyError, struct.error, msgpack.UnpackException) as error:
            raise ProtocolViolation(f"a malformed tokens message: {error}") from error


def _unpack(message: bytes, kind: str) -> Sequence[Any]:
    if len(message) > MESSAGE_BYTES_MAX:
        raise ProtocolViolation(f"a message of {len(message)} bytes; {MESSAGE_BYTES_MAX} at most")
    items = msgpack.unpackb(message)
    if not isinstance(items, list) or not items:
        raise ProtocolViolation("a message that is no list")
    if items[0] != kind:
        raise ProtocolViolation(f"expected a message of kind {kind!r}, saw {items[0]!r}")
    return items[1:]


def _sequence_to_list(sequence: SequenceStep) -> list[Any]:
    asked = sequence.sampling
    sampling = None if asked is None else [asked.temperature, asked.top_p, asked.top_k, asked.seed]
    table = _pack_words(sequence.block_table)
    one = sequence.one_by_one
    return [sequence.sequence_id, sequence.start, sequence.length, table, sampling, one]


def _sequence_from_list(items: Sequence[Any]) -> SequenceStep:
    sequence_id, start, length, table, asked, one_by_one = items
    if not isinstance(one_by_one, bool):
        raise TypeError(f"{one_by_one!r} is neither true nor false")
    sampling = None if asked is None else _sampling(*asked)
    if _count(length) == 0:
        raise ProtocolViolation(f"sequence {sequence_id} takes part in a step with no token")
    blocks = _unpack_words(table)
    return SequenceStep(_count(sequence_id), _count(start), length, blocks, sampling, one_by_one)


def _sampling(temperature: float, top_p: float, top_k: int, seed: int) -> SamplingParams:
    try:
        return SamplingParams(float(temperature), float(top_p), _count(top_k), _count(seed))
    except ButterflyError as error:
        raise ProtocolViolation(f"sampling parameters out of range: {error}") from error


def _check_lengths(batch: StepBatch) -> None:
    expected = sum(sequence.length for sequence in batch.sequences)
    if expected != len(batch.token_ids) or not batch.sequences:
        seen = f"{len(batch.token_ids)} tokens for {len(batch.sequences)} sequences"
        raise ProtocolViolation(f"step {batch.step_id} carries {seen} of {expected} tokens")


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _pack_words(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def _unpack_words(words: object) -> tuple[int, ...]:
    if not isinstance(words, bytes):
        raise TypeError("a run of ids must be bytes")
    return struct.unpack(f"<{len(words) // 4}I", words)
