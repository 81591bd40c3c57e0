"""Messages between stages survive the wire, and nothing else is taken for one."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_core.errors import ProtocolViolation
from butterfly_core.generation import SamplingParams
from butterfly_engine.batch import STEP_KIND, SequenceStep, StepBatch, TokensMessage

words = st.integers(0, 2**32 - 1)
sampling = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 1000),
    seed=st.integers(0, 2**63 - 1),
)
sequences = st.builds(
    SequenceStep,
    sequence_id=words,
    start=words,
    length=st.integers(1, 5),
    block_table=st.lists(words, max_size=5).map(tuple),
    sampling=st.none() | sampling,
    one_by_one=st.booleans(),
)


@st.composite
def batches(draw: st.DrawFn) -> StepBatch:
    members = tuple(draw(st.lists(sequences, min_size=1, max_size=4)))
    count = sum(member.length for member in members)
    tokens = tuple(draw(st.lists(words, min_size=count, max_size=count)))
    return StepBatch(draw(words), draw(words), tokens, members)


@given(batches())
def test_a_step_survives_the_wire(batch: StepBatch) -> None:
    assert StepBatch.decode(batch.encode()) == batch


@given(st.builds(TokensMessage, words, words, st.lists(words, max_size=9).map(tuple)))
def test_tokens_survive_the_wire(message: TokensMessage) -> None:
    assert TokensMessage.decode(message.encode()) == message


@given(st.binary(max_size=64))
def test_noise_is_no_step(noise: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        StepBatch.decode(noise)
    with pytest.raises(ProtocolViolation):
        TokensMessage.decode(noise)


@given(batches(), st.data())
def test_a_damaged_step_is_refused_or_still_well_formed(
    batch: StepBatch, data: st.DataObject
) -> None:
    message = bytearray(batch.encode())
    message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))

    try:
        seen = StepBatch.decode(bytes(message))
    except ProtocolViolation:
        return

    assert len(seen.token_ids) == sum(one.length for one in seen.sequences)


def test_a_step_is_not_taken_for_tokens() -> None:
    step = StepBatch(1, 1, (5,), (SequenceStep(1, 0, 1, (0,)),)).encode()

    with pytest.raises(ProtocolViolation, match="kind"):
        TokensMessage.decode(step)
    with pytest.raises(ProtocolViolation, match="kind"):
        StepBatch.decode(TokensMessage(1, 1, ()).encode())


@pytest.mark.parametrize(
    "sequence",
    [
        [1, 0, 0, b"", None, False],
        [1, 0, 2, b"", None, False],
        [1, -1, 1, b"", None, False],
        [1, 0, True, b"", None, False],
        [1, 0, 1, b"123", None, False],
        [1, 0, 1, "text", None, False],
        [1, 0, 1, b"", [3.0, 1.0, 0, 0], False],
        [1, 0, 1, b"", [1.0, 1.0], False],
        [1, 0, 1, b"", None, 1],
        [1, 0, 1, b"", None],
        [1, 0, 1],
    ],
)
def test_a_sequence_that_makes_no_sense_is_refused(sequence: list[object]) -> None:
    message = msgpack.packb([STEP_KIND, 1, 1, b"\x05\0\0\0", [sequence]])

    with pytest.raises(ProtocolViolation):
        StepBatch.decode(message)


def test_sampled_sequences_are_counted() -> None:
    asks = SequenceStep(1, 0, 1, (0,), SamplingParams())
    batch = StepBatch(1, 1, (5, 6), (asks, SequenceStep(2, 0, 1, (1,))))

    assert batch.sampled_count == 1
    assert asks.stop == 1
