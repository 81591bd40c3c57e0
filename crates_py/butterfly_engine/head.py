"""The first stage of a pipeline at work: it owns the requests and starts every step.

Three threads: one asks the scheduler for a step and computes it, one takes the tokens that come
back, one watches that steps come back at all. They meet in the scheduler, under one lock that is
never held while anything computes.
"""

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from butterfly_core.errors import EngineLost, InvalidValue, NotServing
from butterfly_core.generation import (
    FinishReason,
    GenerationRequest,
    SamplingParams,
    TokensEmitted,
)
from butterfly_engine.batch import StepBatch, TokensMessage
from butterfly_engine.frames import StageLike, is_current, to_bytes
from butterfly_engine.link import Link
from butterfly_engine.meters import Meters
from butterfly_engine.outbox import Outbox
from butterfly_engine.scheduler import Scheduler
from butterfly_engine.step_watch import StepWatch
from butterfly_engine.workers import JOIN_SECONDS, Worker, join_all

STEP_SECONDS_MAX = 60.0
_WATCH_SECONDS_MAX = 5.0
_WARM_UP_TOKENS = 2


class Head:
    """The first stage and the scheduler of a pipeline; alone when it holds all layers.

    ``on_tokens`` and ``on_lost`` are called from the head's threads, one call at a time each, and
    must be quick. Every request that ``submit`` took gets exactly one ``finish``: with
    FinishReason.ERROR when the pipeline is lost or closed. ``on_lost`` is called at most once.
    """

    def __init__(
        self,
        stage: StageLike,
        scheduler: Scheduler,
        epoch: int,
        to_next: Link | None,
        from_last: Link | None,
        on_tokens: Callable[[list[TokensEmitted]], None],
        on_lost: Callable[[Exception], None],
        *,
        step_seconds_max: float = STEP_SECONDS_MAX,
    ) -> None:
        """With a step under way and none back for ``step_seconds_max`` the pipeline is lost."""
        if (to_next is None) != stage.is_last or (from_last is None) != stage.is_last:
            raise InvalidValue("a head has both links, or holds the last layer and has none")
        self.epoch = epoch
        self._stage = stage
        self._scheduler = scheduler
        self._to_next = to_next
        self._links = [link for link in (to_next, from_last) if link is not None]
        self._on_lost = on_lost
        self._outbox = Outbox(self._route, on_tokens)
        self._changed = threading.Condition()
        self._ended: str | None = None
        self._meters = Meters()
        self._watch = StepWatch(step_seconds_max)
        self._over = threading.Event()
        self._warm_ups: dict[str, threading.Event] = {}
        self._warm_up_errors: list[str] = []
        self._workers = [
            Worker(f"head {epoch}", self._drive, self._lose),
            Worker(f"watch {epoch}", self._look_for_stuck_steps, self._lose),
        ]
        if from_last is not None:
            listen = partial(self._listen, from_last)
            self._workers.append(Worker(f"answers {epoch}", listen, self._lose))

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    def submit(self, request: GenerationRequest) -> None:
        """Take a request. Raises RequestError (impossible) or NotServing (full, lost, closed)."""
        with self._changed:
            if self._ended is not None:
                raise NotServing(self._ended, phase="assignment")
            self._scheduler.submit(request)
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        """End a request; it is answered with FinishReason.CANCELLED unless it had ended."""
        with self._changed:
            self._outbox.add(self._scheduler.cancel(request_id))
            self._changed.notify()
        self._outbox.deliver()

    def warm_up(self, timeout_seconds: float) -> float:
        """Send a short request through all stages and wait for its answer; seconds it took.

        Raises EngineLost when none came in time or the pipeline broke, NotServing if it had.
        """
        started = time.perf_counter()
        request_id = f"warm-up {self.epoch} {len(self._warm_ups)}"
        done = self._warm_ups[request_id] = threading.Event()
        limits = self._scheduler.limits
        prompt = (0,) * max(1, min(8, limits.sequence_tokens_max - _WARM_UP_TOKENS))
        greedy = SamplingParams(temperature=0.0)
        self.submit(GenerationRequest(request_id, prompt, _WARM_UP_TOKENS, greedy, ignore_eos=True))
        answered = done.wait(timeout_seconds)
        if not answered:
            self.cancel(request_id)
            raise EngineLost(
                f"the pipeline of epoch {self.epoch} did not answer its warm-up request within "
                f"{timeout_seconds} s; one of its stages is stuck or far slower than planned"
            )
        if self._warm_up_errors:
            raise EngineLost(self._warm_up_errors[0])
        return time.perf_counter() - started

    def close(self, timeout_seconds: float = JOIN_SECONDS) -> bool:
        """End all requests, close the links, join the threads; False if one did not end in time."""
        self._end(f"the pipeline of epoch {self.epoch} was closed")
        return join_all(self._workers, timeout_seconds)

    def statistics(self) -> Mapping[str, float]:
        """The scheduler's gauges and the stage's totals."""
        with self._changed:
            return {**self._scheduler.statistics(), **self._meters.totals()}

    def _drive(self) -> None:
        while (batch := self._next_batch()) is not None:
            started = time.perf_counter()
            output = self._stage.step(batch)
            if self._to_next is not None:
                # Counted before sending: the answer may be back before send returns.
                payload = to_bytes(output)
                self._meters.step_done(batch, time.perf_counter() - started)
                self._to_next.send(batch.encode(), payload)
            else:
                token_ids = tuple(output.tolist())
                self._meters.step_done(batch, time.perf_counter() - started)
                self._commit(batch.step_id, token_ids)

    def _next_batch(self) -> StepBatch | None:
        with self._changed:
            while self._ended is None:
                batch = self._scheduler.schedule(self.epoch)
                if batch is not None:
                    self._watch.begun(batch.step_id, time.monotonic())
                    return batch
                self._changed.wait()
            return None

    def _listen(self, from_last: Link) -> None:
        while self._ended is None:
            meta, _ = from_last.receive()
            message = TokensMessage.decode(meta)
            if is_current(message.epoch, self.epoch, self._meters):
                self._commit(message.step_id, message.token_ids)

    def _look_for_stuck_steps(self) -> None:
        pause = min(_WATCH_SECONDS_MAX, self._watch.seconds_max / 4)
        while not self._over.wait(pause):
            with self._changed:
                stuck = self._watch.stuck(time.monotonic())
            if stuck is not None:
                raise EngineLost(stuck)

    def _commit(self, step_id: int, token_ids: tuple[int, ...]) -> None:
        with self._changed:
            if self._ended is None:
                self._outbox.add(self._scheduler.commit(step_id, token_ids))
                self._watch.ended(step_id, time.monotonic())
                self._changed.notify()
        self._outbox.deliver()

    def _route(self, event: TokensEmitted) -> bool:
        """Keep the answers to our own warm-up; True for those that leave the head."""
        done = self._warm_ups.get(event.request_id)
        if done is None:
            return True
        if event.finish is FinishReason.ERROR:
            self._warm_up_errors.append(event.error or "unknown error")
        if event.finish is not None:
            done.set()
        return False

    def _lose(self, error: Exception) -> None:
        if self._end(f"the pipeline of epoch {self.epoch} was lost: {error}"):
            self._on_lost(error)

    def _end(self, reason: str) -> bool:
        """True for the first caller, whose reason is told to all requests."""
        with self._changed:
            if self._ended is not None:
                return False
            self._ended = reason
            self._outbox.add(self._scheduler.abort(reason))
            self._changed.notify_all()
        self._over.set()
        for link in self._links:
            link.close()
        self._outbox.deliver()
        return True
