"""Which tokens run next. Ints only: no tensor, clock, thread or chance.

How it works: a step takes every sequence that has a token ready, one token each (decode), then
chunks of prompts until the token budget is spent, then admits waiting requests for whose whole
prompt there are blocks. What is known of an answer already becomes chunks of its own, marked:
it must round as it did when it was sampled. At most ``groups`` steps are in the pipeline at
once, and a step takes no more than its share of the sequences (their number / groups), so that
the others fill the next steps and no stage idles. A long prompt's chunks may follow each other
through the pipeline, because they need no sampled token.

When blocks run out, the newest idle sequence gives its own up and is computed again later from
all its tokens. Blocks return to the pool at once when a sequence ends, also with steps in
flight: every stage runs steps in order, so their next owner writes after the last old write.

It refuses to know: text, transports, epochs (a caller's stamp), devices.
"""

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as default

from butterfly_core.errors import NotServing, ProtocolViolation, RequestError
from butterfly_core.generation import FinishReason, GenerationRequest, TokensEmitted
from butterfly_engine.batch import SequenceStep, StepBatch
from butterfly_engine.blocks import BlockPool
from butterfly_engine.params import SchedulerLimits
from butterfly_engine.sequence import Sequence, check_request, stop_tokens


@dataclass(slots=True)
class _Step:
    """A step being put together."""

    tokens_left: int
    sequences_left: int
    chosen: dict[Sequence, int] = default(default_factory=dict)

    @property
    def full(self) -> bool:
        return self.tokens_left < 1 or self.sequences_left < 1

    def add(self, sequence: Sequence, length: int) -> None:
        self.chosen[sequence] = length
        self.tokens_left -= length
        self.sequences_left -= 1


class Scheduler:
    """One pipeline's requests, from ``submit`` to the last ``TokensEmitted``; not thread-safe."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self._pool = BlockPool(limits.kv_blocks, limits.block_size)
        self._waiting: list[Sequence] = []
        self._running: dict[str, Sequence] = {}  # least recently scheduled first
        self._known: dict[str, Sequence] = {}
        self._in_flight: dict[int, tuple[tuple[Sequence, bool], ...]] = {}
        self._next_step_id = 1
        self._arrivals = 0
        self._preemptions = 0

    def submit(self, request: GenerationRequest) -> None:
        """Queue a request. Raises RequestError (impossible) or NotServing (the queue is full)."""
        if request.request_id in self._known:
            raise RequestError(f"request {request.request_id!r} is already running")
        check_request(request, self.limits)
        if len(self._waiting) >= self.limits.waiting_max:
            raise NotServing(
                f"{len(self._waiting)} requests are waiting already; try again later",
                phase="serving",
            )
        self._arrivals += 1
        stops = stop_tokens(request, self.limits.eos_token_ids)
        sequence = Sequence(request, self._arrivals, stops)
        self._known[request.request_id] = sequence
        self._waiting.append(sequence)

    def cancel(self, request_id: str) -> list[TokensEmitted]:
        """End a request now; its tokens still in the pipeline are dropped when they arrive."""
        sequence = self._known.get(request_id)
        if sequence is None:
            return []
        self._end(sequence)
        return [TokensEmitted(request_id, (), FinishReason.CANCELLED)]

    def abort(self, error: str) -> list[TokensEmitted]:
        """End every request with this error."""
        ended = [
            TokensEmitted(request_id, (), FinishReason.ERROR, error) for request_id in self._known
        ]
        for sequence in list(self._known.values()):
            self._end(sequence)
        self._in_flight.clear()
        return ended

    def schedule(self, epoch: int = 0) -> StepBatch | None:
        """The next step, or None when nothing can run before a commit, a cancel or a submit."""
        if len(self._in_flight) >= self.limits.groups:
            return None
        step = _Step(self.limits.token_budget, self._share())
        self._take_decodes(step)
        self._take_prompt_chunks(step)
        self._admit(step)
        return self._issue(step.chosen, epoch) if step.chosen else None

    def commit(self, step_id: int, token_ids: tuple[int, ...]) -> list[TokensEmitted]:
        """Take a step's sampled tokens, in the order of its sequences that asked for one.

        Raises ProtocolViolation when they answer no step in flight, or not all of it.
        """
        members = self._in_flight.get(step_id)
        if members is None:
            raise ProtocolViolation(f"tokens for step {step_id}, which is not in flight")
        sampled = [sequence for sequence, samples in members if samples]
        if len(sampled) != len(token_ids):
            seen = f"{len(token_ids)} tokens for {len(sampled)} sequences"
            raise ProtocolViolation(f"step {step_id} came back with {seen}")
        if token_ids and max(token_ids) >= self.limits.vocab_size:
            raise ProtocolViolation(f"step {step_id} came back with token {max(token_ids)}")
        del self._in_flight[step_id]
        for sequence, _ in members:
            sequence.steps_in_flight -= 1
        pairs = zip(sampled, token_ids, strict=True)
        return [self._emit(sequence, token) for sequence, token in pairs if not sequence.ended]

    def statistics(self) -> Mapping[str, int]:
        return {
            "requests_waiting": len(self._waiting),
            "requests_running": len(self._running),
            "steps_in_flight": len(self._in_flight),
            "kv_blocks_free": self._pool.free,
            "kv_blocks_total": self._pool.count,
            "preemptions_total": self._preemptions,
        }

    def _share(self) -> int:
        room = self.limits.sequences_max - len(self._running)
        active = len(self._running) + min(room, len(self._waiting))
        return -(-active // self.limits.groups)

    def _take_decodes(self, step: _Step) -> None:
        ready = [sequence for sequence in self._running.values() if sequence.remaining == 1]
        prompts_pending = bool(self._waiting) or any(
            s.remaining > 1 for s in self._running.values()
        )
        # One token of every step is kept for prompts: a full house must not starve them.
        spare = 1 if prompts_pending and step.tokens_left > 1 else 0
        for sequence in ready:
            if step.tokens_left <= spare or step.full:
                return
            if sequence.blocks and self._make_room(sequence, step):
                step.add(sequence, 1)

    def _make_room(self, sequence: Sequence, step: _Step) -> bool:
        """Get a block for the sequence's next token, if it needs one; others may have to go."""
        while not self._pool.extend(sequence.blocks, sequence.scheduled + 1):
            idle = (
                other
                for other in self._running.values()
                if not other.steps_in_flight and other not in step.chosen
            )
            victim = max(idle, key=lambda other: other.arrival)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, victim: Sequence) -> None:
        self._preemptions += 1
        self._pool.release(victim.blocks)
        victim.scheduled = 0
        del self._running[victim.request.request_id]
        insort(self._waiting, victim, key=lambda sequence: sequence.arrival)

    def _take_prompt_chunks(self, step: _Step) -> None:
        for sequence in self._running.values():
            if step.full:
                return
            if sequence.remaining > 1 and sequence not in step.chosen:
                step.add(sequence, sequence.chunk(step.tokens_left))

    def _admit(self, step: _Step) -> None:
        while self._waiting and not step.full and len(self._running) < self.limits.sequences_max:
            sequence = self._waiting[0]
            # A block is left for each running sequence to grow into, or it would soon preempt.
            admission = self._pool.admit(sequence.tokens, reserve=len(self._running))
            if admission is None:
                return
            del self._waiting[0]
            sequence.blocks = admission.blocks
            sequence.scheduled = admission.cached_tokens
            self._running[sequence.request.request_id] = sequence
            step.add(sequence, sequence.chunk(step.tokens_left))

    def _issue(self, chosen: Mapping[Sequence, int], epoch: int) -> StepBatch:
        token_ids: list[int] = []
        steps: list[SequenceStep] = []
        members: list[tuple[Sequence, bool]] = []
        for sequence, length in chosen.items():
            start = sequence.scheduled
            one_by_one = length > 1 and sequence.in_answer
            stop = sequence.scheduled = start + length
            sequence.steps_in_flight += 1
            samples = sequence.remaining == 0
            sampling = sequence.request.sampling if samples else None
            table = tuple(sequence.blocks)
            token_ids.extend(sequence.tokens[start:stop])
            steps.append(SequenceStep(sequence.arrival, start, length, table, sampling, one_by_one))
            members.append((sequence, samples))
            request_id = sequence.request.request_id
            self._running[request_id] = self._running.pop(request_id)
        step_id = self._next_step_id
        self._next_step_id += 1
        self._in_flight[step_id] = tuple(members)
        return StepBatch(epoch, step_id, tuple(token_ids), tuple(steps))

    def _emit(self, sequence: Sequence, token: int) -> TokensEmitted:
        finish = sequence.append(token, self.limits.sequence_tokens_max)
        if finish is not None:
            self._end(sequence)
        return TokensEmitted(sequence.request.request_id, (token,), finish)

    def _end(self, sequence: Sequence) -> None:
        sequence.ended = True
        self._pool.release(sequence.blocks)
        del self._known[sequence.request.request_id]
        if self._running.pop(sequence.request.request_id, None) is None:
            self._waiting.remove(sequence)
