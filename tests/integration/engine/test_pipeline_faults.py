"""What a pipeline does with devices that fail or hang, and with frames that are not its own."""

import threading
from collections.abc import Sequence

import pytest
import torch

from butterfly_core.errors import EngineLost, InvalidValue, ProtocolViolation
from butterfly_core.generation import FinishReason, GenerationRequest, SamplingParams, TokensEmitted
from butterfly_engine.batch import SequenceStep, StepBatch, TokensMessage
from butterfly_engine.link import MemoryLink
from butterfly_engine.params import SchedulerLimits
from butterfly_engine.pipeline import Follower, Head
from butterfly_engine.scheduler import Scheduler
from tests.support.engine_pipelines import Answers, Pipeline

PROMPT = list(range(40, 60))
LONG = 400
SECONDS = 30.0


def limits(stages: Sequence[object]) -> SchedulerLimits:
    return SchedulerLimits(
        kv_blocks=64, block_size=8, token_budget=32, groups=len(stages), vocab_size=300
    )


class FailingStage:
    """A stage whose device breaks at a chosen step, or which hangs until released."""

    hidden_size = 4
    dtype = torch.float32

    def __init__(self, *, is_last: bool, fails_at: int = 1 << 30, hangs: bool = False) -> None:
        self.is_last = is_last
        self._fails_at = fails_at
        self.release = threading.Event()
        if not hangs:
            self.release.set()

    def step(self, batch: StepBatch, hidden: torch.Tensor | None = None) -> torch.Tensor:
        self.release.wait(SECONDS)
        if batch.step_id >= self._fails_at:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self.is_last:
            return torch.zeros(batch.sampled_count, dtype=torch.int64)
        return torch.zeros(len(batch.token_ids), self.hidden_size)


@pytest.mark.parametrize("broken", [0, 1])
def test_a_failed_device_is_a_lost_pipeline(broken: int) -> None:
    stages = [
        FailingStage(is_last=False, fails_at=5 if broken == 0 else 1 << 30),
        FailingStage(is_last=True, fails_at=5 if broken == 1 else 1 << 30),
    ]
    with Pipeline(stages, limits(stages)) as pipeline:
        pipeline.submit("a", PROMPT, LONG)

        assert pipeline.answers.wait_end("a") is FinishReason.ERROR
    losses = dict(pipeline.lost)
    assert isinstance(losses[broken], RuntimeError)
    assert len(pipeline.lost) == len(losses)


def test_a_device_that_fails_alone_is_told() -> None:
    stages = [FailingStage(is_last=True, fails_at=3)]
    with Pipeline(stages, limits(stages)) as pipeline:
        pipeline.submit("a", PROMPT, LONG)

        assert pipeline.answers.wait_end("a") is FinishReason.ERROR
        assert len(pipeline.answers.tokens("a")) == 2
    assert [type(error) for _, error in pipeline.lost] == [RuntimeError]


def test_a_stuck_stage_fails_the_warm_up_and_close_does_not_wait_for_ever() -> None:
    stage = FailingStage(is_last=True, hangs=True)
    head = Head(stage, Scheduler(limits([stage])), 1, None, None, lambda _: None, lambda _: None)
    head.start()

    with pytest.raises(EngineLost, match="warm-up"):
        head.warm_up(0.05)
    assert not head.close(0.05)
    stage.release.set()
    assert head.close(SECONDS)


def test_a_pipeline_that_breaks_fails_its_warm_up_at_once() -> None:
    stages = [FailingStage(is_last=True, fails_at=1)]
    with Pipeline(stages, limits(stages)) as pipeline, pytest.raises(EngineLost, match="lost"):
        pipeline.head.warm_up(SECONDS)


class HeadOnly:
    """A head with a short limit; the stages behind it are the test's."""

    def __init__(self, stage: FailingStage, links: Sequence[MemoryLink]) -> None:
        self.answers = Answers()
        self.lost: list[Exception] = []
        to_next, from_last = links or (None, None)
        scheduler = Scheduler(limits([stage, *links]))
        self.head = Head(
            stage,
            scheduler,
            1,
            to_next,
            from_last,
            self.answers.take,
            self.lost.append,
            step_seconds_max=0.2,
        )
        self.head.start()
        self.head.submit(GenerationRequest("a", tuple(PROMPT), LONG))


def test_a_stage_that_hangs_behind_the_head_is_a_lost_pipeline() -> None:
    hung = FailingStage(is_last=True, hangs=True)
    links = MemoryLink(), MemoryLink()
    follower = Follower(hung, 1, *links, True, lambda _: None)
    follower.start()
    own = HeadOnly(FailingStage(is_last=False), links)

    assert own.answers.wait_end("a") is FinishReason.ERROR
    assert "under way" in str(own.answers.ends("a")[0].error)
    assert own.head.close(SECONDS)
    assert [type(error) for error in own.lost] == [EngineLost]
    hung.release.set()
    assert follower.close(SECONDS)


def test_a_head_whose_own_device_hangs_ends_its_requests() -> None:
    hung = FailingStage(is_last=True, hangs=True)
    own = HeadOnly(hung, ())

    assert own.answers.wait_end("a") is FinishReason.ERROR
    assert not own.head.close(0.05)
    hung.release.set()
    assert own.head.close(SECONDS)
    assert [type(error) for error in own.lost] == [EngineLost]


def test_a_head_without_requests_is_not_stuck() -> None:
    own = HeadOnly(FailingStage(is_last=True), ())
    assert own.answers.wait_end("a") is FinishReason.LENGTH

    threading.Event().wait(0.5)

    assert own.lost == []
    assert own.head.close(SECONDS)


class Ends:
    """One follower between two links held by the test."""

    def __init__(self, epoch: int = 7) -> None:
        self.before, self.after = MemoryLink(), MemoryLink()
        self.lost: list[Exception] = []
        self.told = threading.Event()
        stage = FailingStage(is_last=True)
        self.follower = Follower(stage, epoch, self.before, self.after, True, self.note)
        self.follower.start()

    def note(self, error: Exception) -> None:
        self.lost.append(error)
        self.told.set()

    def send(self, epoch: int, step_id: int, payload: bytes = bytes(16)) -> None:
        batch = StepBatch(epoch, step_id, (1,), (SequenceStep(1, 0, 1, (0,), SamplingParams()),))
        self.before.send(batch.encode(), payload)


def test_frames_of_an_older_epoch_are_dropped() -> None:
    ends = Ends(epoch=7)
    ends.send(6, 1)
    ends.send(7, 2)

    message = TokensMessage.decode(ends.after.receive()[0])

    assert (message.epoch, message.step_id) == (7, 2)
    assert ends.follower.statistics()["frames_dropped_total"] == 1
    assert ends.follower.close()
    assert ends.lost == []


@pytest.mark.parametrize(
    "frames",
    [
        [(8, 1, bytes(16))],
        [(7, 2, bytes(16)), (7, 2, bytes(16))],
        [(7, 1, bytes(15))],
    ],
    ids=["newer epoch", "repeated step", "short payload"],
)
def test_a_frame_that_cannot_be_ours_ends_the_pipeline(
    frames: list[tuple[int, int, bytes]],
) -> None:
    ends = Ends(epoch=7)
    for frame in frames:
        ends.send(*frame)

    assert ends.told.wait(SECONDS)
    assert [type(error) for error in ends.lost] == [ProtocolViolation]
    assert ends.follower.close()


def test_late_tokens_of_an_older_epoch_change_nothing() -> None:
    to_next, from_last = MemoryLink(), MemoryLink()
    stage = FailingStage(is_last=False)
    events: list[TokensEmitted] = []
    arrived = threading.Event()

    def take(new: list[TokensEmitted]) -> None:
        events.extend(new)
        arrived.set()

    scheduler = Scheduler(limits([stage, stage]))
    head = Head(stage, scheduler, 7, to_next, from_last, take, lambda _: None)
    head.start()
    head.submit(GenerationRequest("a", (1, 2), 1))
    batch = StepBatch.decode(to_next.receive()[0])
    from_last.send(TokensMessage(6, batch.step_id, (99,)).encode())
    from_last.send(TokensMessage(7, batch.step_id, (42,)).encode())

    assert arrived.wait(SECONDS)
    assert [event.token_ids for event in events] == [(42,)]
    assert head.statistics()["frames_dropped_total"] == 1
    assert head.close()


def test_places_and_layers_must_agree() -> None:
    link = MemoryLink()
    first, last = FailingStage(is_last=False), FailingStage(is_last=True)
    scheduler = Scheduler(limits([first]))

    with pytest.raises(InvalidValue):
        Head(first, scheduler, 1, None, None, lambda _: None, lambda _: None)
    with pytest.raises(InvalidValue):
        Head(last, scheduler, 1, link, link, lambda _: None, lambda _: None)
    with pytest.raises(InvalidValue):
        Follower(first, 1, link, link, True, lambda _: None)
