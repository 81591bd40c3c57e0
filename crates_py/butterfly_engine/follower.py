"""A stage behind the head at work: receive, compute, send on, in order."""

import threading
import time
from collections.abc import Callable, Mapping

import torch

from butterfly_core.errors import InvalidValue, ProtocolViolation
from butterfly_engine.batch import StepBatch, TokensMessage
from butterfly_engine.frames import StageLike, from_bytes, is_current, to_bytes
from butterfly_engine.link import Link
from butterfly_engine.meters import Meters
from butterfly_engine.workers import JOIN_SECONDS, Handover, Worker, join_all

_STEPS_WAITING_MAX = 16


class Follower:
    """Any stage but the first: computes what arrives and sends it on, in order.

    One thread receives the next step while another computes this one. ``on_lost`` is called at
    most once, and not after ``close``.
    """

    def __init__(
        self,
        stage: StageLike,
        epoch: int,
        from_previous: Link,
        to_next: Link,
        is_last: bool,
        on_lost: Callable[[Exception], None],
    ) -> None:
        """``to_next`` leads to the next stage, or from the last one back to the head."""
        if is_last != stage.is_last:
            raise InvalidValue("the follower's place and its stage's layers disagree")
        self.epoch = epoch
        self._stage = stage
        self._from_previous = from_previous
        self._to_next = to_next
        self._on_lost = on_lost
        self._meters = Meters()
        self._ending = threading.Lock()
        self._ended = False
        self._arrived: Handover[tuple[StepBatch, torch.Tensor]] = Handover(_STEPS_WAITING_MAX)
        self._workers = [
            Worker(f"receive {epoch}", self._receive, self._lose),
            Worker(f"compute {epoch}", self._compute, self._lose),
        ]

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    def close(self, timeout_seconds: float = JOIN_SECONDS) -> bool:
        """Close the links and join the threads; False if one did not end in time."""
        self._end()
        return join_all(self._workers, timeout_seconds)

    def statistics(self) -> Mapping[str, float]:
        return self._meters.totals()

    def _receive(self) -> None:
        last_step_id = 0
        while not self._ended:
            meta, payload = self._from_previous.receive()
            batch = StepBatch.decode(meta)
            if not is_current(batch.epoch, self.epoch, self._meters):
                continue
            if batch.step_id <= last_step_id:
                raise ProtocolViolation(f"step {batch.step_id} came after step {last_step_id}")
            last_step_id = batch.step_id
            hidden = from_bytes(
                payload,
                tokens=len(batch.token_ids),
                hidden_size=self._stage.hidden_size,
                dtype=self._stage.dtype,
            )
            self._arrived.put((batch, hidden))

    def _compute(self) -> None:
        while (arrived := self._arrived.get()) is not None:
            batch, hidden = arrived
            started = time.perf_counter()
            output = self._stage.step(batch, hidden)
            if self._stage.is_last:
                message = TokensMessage(batch.epoch, batch.step_id, tuple(output.tolist()))
                meta, payload = message.encode(), memoryview(b"")
            else:
                meta, payload = batch.encode(), to_bytes(output)
            self._meters.step_done(batch, time.perf_counter() - started)
            self._to_next.send(meta, payload)

    def _lose(self, error: Exception) -> None:
        if self._end():
            self._on_lost(error)

    def _end(self) -> bool:
        with self._ending:
            if self._ended:
                return False
            self._ended = True
        self._arrived.close()
        self._from_previous.close()
        self._to_next.close()
        return True
