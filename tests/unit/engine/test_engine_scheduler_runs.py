"""Whole runs of the scheduler against stages that only remember which token lies in which slot.

A stage here is a table: slot -> (sequence, position, token). Before a token is sampled, every
earlier one of its sequence must lie in the slots its block table names: so a shared block, a
skipped or repeated chunk, or a block given away too early shows at once. Two stages run the same
steps at different times: the first when they are scheduled, the last when they are committed.
"""

from collections import deque
from collections.abc import Callable

from hypothesis import example, given, settings
from hypothesis import strategies as st

from butterfly_core.generation import FinishReason, GenerationRequest, TokensEmitted
from butterfly_engine.batch import SequenceStep, StepBatch
from butterfly_engine.params import SchedulerLimits
from butterfly_engine.scheduler import Scheduler

limits_drawn = st.builds(
    SchedulerLimits,
    kv_blocks=st.integers(3, 12),
    block_size=st.integers(1, 4),
    token_budget=st.integers(1, 9),
    groups=st.integers(1, 3),
    sequences_max=st.integers(1, 5),
)


def answer(tokens: tuple[int, ...]) -> int:
    """What the model says after these tokens."""
    return hash(tokens) % 50


class RememberingStage:
    """Runs steps on slots and checks what lies there."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.size = limits.block_size
        self.slots: dict[int, tuple[int, int, int]] = {}

    def run(self, batch: StepBatch) -> tuple[int, ...]:
        tokens = deque(batch.token_ids)
        sampled = []
        for one in batch.sequences:
            for position in range(one.start, one.stop):
                self.slots[self.slot(one, position)] = (
                    one.sequence_id,
                    position,
                    tokens.popleft(),
                )
            seen = [self.slots[self.slot(one, position)] for position in range(one.stop)]
            assert [entry[:2] for entry in seen] == [(one.sequence_id, i) for i in range(one.stop)]
            if one.sampling is not None:
                sampled.append(answer(tuple(entry[2] for entry in seen)))
        return tuple(sampled)

    def slot(self, one: SequenceStep, position: int) -> int:
        return one.block_table[position // self.size] * self.size + position % self.size


class Run:
    """One scheduler, its steps in flight, and what came out."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.scheduler = Scheduler(limits)
        self.first, self.last = RememberingStage(limits), RememberingStage(limits)
        self.in_flight: deque[StepBatch] = deque()
        self.computed: dict[int, list[int]] = {}
        self.events: list[TokensEmitted] = []

    def schedule(self) -> bool:
        batch = self.scheduler.schedule()
        if batch is None:
            return False
        self.check(batch)
        self.first.run(batch)
        self.in_flight.append(batch)
        return True

    def commit(self) -> bool:
        if not self.in_flight:
            return False
        batch = self.in_flight.popleft()
        self.events += self.scheduler.commit(batch.step_id, self.last.run(batch))
        return True

    def check(self, batch: StepBatch) -> None:
        assert 0 < len(batch.token_ids) <= self.limits.token_budget
        assert len({one.sequence_id for one in batch.sequences}) == len(batch.sequences)
        assert len(self.in_flight) < self.limits.groups
        owned = [block for one in batch.sequences for block in one.block_table]
        assert len(owned) == len(set(owned)) <= self.limits.kv_blocks
        assert self.scheduler.statistics()["requests_running"] <= self.limits.sequences_max
        for one in batch.sequences:
            self.computed.setdefault(one.sequence_id, []).extend(range(one.start, one.stop))

    def finish(self) -> None:
        for _ in range(20_000):
            if not self.schedule() and not self.commit():
                return
        raise AssertionError("the scheduler makes no progress")


def expected_answer(request: GenerationRequest, limits: SchedulerLimits) -> list[int]:
    tokens = [*request.prompt, *request.emitted]
    start = len(tokens)
    wanted = request.tokens_max - len(request.emitted)
    while len(tokens) - start < wanted and len(tokens) < limits.sequence_tokens_max:
        tokens.append(answer(tuple(tokens)))
    return tokens[start:]


@st.composite
def cases(draw: st.DrawFn) -> tuple[SchedulerLimits, list[GenerationRequest]]:
    limits = draw(limits_drawn)
    longest = limits.sequence_tokens_max - 1
    requests = []
    for number in range(draw(st.integers(1, 7))):
        known = draw(st.lists(st.integers(0, 49), min_size=1, max_size=min(longest, 20)))
        cut = draw(st.integers(1, len(known)))
        emitted = tuple(known[cut:])
        tokens_max = len(emitted) + draw(st.integers(1, 8))
        requests.append(
            GenerationRequest(str(number), tuple(known[:cut]), tokens_max, emitted=emitted)
        )
    return limits, requests


@settings(deadline=None, max_examples=100)
@given(cases(), st.data())
def test_every_request_is_answered_as_if_it_were_alone(
    case: tuple[SchedulerLimits, list[GenerationRequest]], data: st.DataObject
) -> None:
    limits, requests = case
    run = Run(limits)
    for request in requests:
        run.scheduler.submit(request)
        for action in data.draw(st.lists(st.sampled_from([run.schedule, run.commit]), max_size=4)):
            action()
    run.finish()

    for request in requests:
        own = [event for event in run.events if event.request_id == request.request_id]
        tokens = [token for event in own for token in event.token_ids]
        assert tokens == expected_answer(request, limits)
        assert [event.finish for event in own if event.finish] == [FinishReason.LENGTH]
    statistics = run.scheduler.statistics()
    assert statistics["kv_blocks_free"] == limits.kv_blocks
    if not statistics["preemptions_total"]:
        for positions in run.computed.values():
            assert positions == list(range(len(positions))), "each token once, in order"


@settings(deadline=None, max_examples=100)
@example(8, 1, [1] * 6)
@example(8, 2, [1] * 6)
@example(8, 3, [1] * 6)
@given(st.integers(5, 9), st.integers(1, 3), st.lists(st.integers(1, 3), min_size=3, max_size=6))
def test_answers_survive_a_shortage_of_blocks(
    blocks: int, groups: int, prompt_lengths: list[int]
) -> None:
    limits = SchedulerLimits(kv_blocks=blocks, block_size=1, token_budget=4, groups=groups)
    run = Run(limits)
    requests = [
        GenerationRequest(str(number), (number,) * length, 6)
        for number, length in enumerate(prompt_lengths)
    ]
    for request in requests:
        run.scheduler.submit(request)
    run.finish()

    for request in requests:
        own = [event for event in run.events if event.request_id == request.request_id]
        tokens = [token for event in own for token in event.token_ids]
        assert tokens == expected_answer(request, limits)
    statistics = run.scheduler.statistics()
    assert statistics["kv_blocks_free"] == blocks
    if blocks == 8 and prompt_lengths == [1] * 6:
        assert statistics["preemptions_total"] > 0, "or the examples above prove nothing"


@settings(deadline=None, max_examples=100)
@given(cases(), st.data())
def test_cancelling_at_any_time_frees_everything_and_harms_nobody(
    case: tuple[SchedulerLimits, list[GenerationRequest]], data: st.DataObject
) -> None:
    limits, requests = case
    run = Run(limits)
    cancelled: set[str] = set()

    def cancel() -> bool:
        victim = data.draw(st.sampled_from(requests)).request_id
        events = run.scheduler.cancel(victim)
        cancelled.update(event.request_id for event in events)
        run.events += events
        return bool(events)

    actions: list[Callable[[], bool]] = [run.schedule, run.commit, cancel]
    for request in requests:
        run.scheduler.submit(request)
        for action in data.draw(st.lists(st.sampled_from(actions), max_size=5)):
            action()
    run.finish()

    for request in requests:
        own = [event for event in run.events if event.request_id == request.request_id]
        tokens = [token for event in own for token in event.token_ids]
        expected = expected_answer(request, limits)
        if request.request_id in cancelled:
            assert tokens == expected[: len(tokens)]
        else:
            assert tokens == expected
        assert len([event for event in own if event.finish]) == 1
    statistics = run.scheduler.statistics()
    assert statistics["kv_blocks_free"] == limits.kv_blocks
    assert statistics["requests_running"] == statistics["requests_waiting"] == 0
