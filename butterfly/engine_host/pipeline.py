"""One epoch's pipeline in this process: the stage, its links, and what runs them.

Links come in any order, before and after the stage is ready; the pipeline starts when the last
one is there.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import torch

from butterfly.channel import EngineSettings, Load
from butterfly_core.errors import EngineLost, NotServing
from butterfly_core.generation import GenerationRequest, SamplingParams, TokensEmitted
from butterfly_core.layers import LayerRange
from butterfly_engine.batch import SequenceStep, StepBatch
from butterfly_engine.link import Link
from butterfly_engine.params import SchedulerLimits
from butterfly_engine.pipeline import Follower, Head
from butterfly_engine.scheduler import Scheduler
from butterfly_engine.stage import Stage

Direction = Literal["in", "out"]
_WARM_UP_TOKENS: Final = 8


def build_stage(
    order: Load,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    settings: EngineSettings,
    device: str,
) -> Stage:
    """The order's layers, ready to run. Raises ModelError."""
    return Stage(
        config,
        LayerRange(order.start, order.stop),
        tensors,
        device=device,
        dtype=None if settings.dtype == "auto" else settings.dtype,
        kv_blocks=max(1, order.kv_tokens // settings.block_size),
        block_size=settings.block_size,
    )


def warm_up(stage: Stage) -> None:
    """Run the stage once on a made-up step, so that the first request does not pay for it."""
    tokens = min(_WARM_UP_TOKENS, stage.kv_blocks * stage.block_size)
    blocks = tuple(range(-(-tokens // stage.block_size)))
    greedy = SamplingParams(temperature=0.0)
    sequence = SequenceStep(1, 0, tokens, blocks, greedy)
    hidden = None
    if not stage.is_first:
        hidden = torch.zeros(tokens, stage.hidden_size, dtype=stage.dtype, device=stage.device)
    stage.step(StepBatch(0, 1, (0,) * tokens, (sequence,)), hidden)


class Pipeline:
    """This process's stage of one epoch at work. Thread-safe."""

    def __init__(
        self,
        order: Load,
        stage: Stage,
        settings: EngineSettings,
        *,
        on_tokens: Callable[[list[TokensEmitted]], None],
        on_lost: Callable[[Exception], None],
    ) -> None:
        self.epoch = order.epoch
        self._stages = order.stages
        self._stage = stage
        self._settings = settings
        self._on_tokens = on_tokens
        self._on_lost = on_lost
        self._links: dict[Direction, Link] = {}
        self._complete = threading.Condition()
        self._running: Head | Follower | None = None
        self._closed = False
        self._start_when_complete()

    def attach(self, direction: Direction, link: Link) -> None:
        """Take a link to the next stage (out) or from the previous one (in).

        A second one comes when opening the first was tried again, so the newer one counts.
        """
        with self._complete:
            late = self._closed or self._running is not None
            unwanted = link if late else self._links.get(direction)
            if not late:
                self._links[direction] = link
        if unwanted is not None:
            unwanted.close()
        self._start_when_complete()

    def _start_when_complete(self) -> None:
        with self._complete:
            needed = 0 if self._stages == 1 else 2
            if self._closed or self._running is not None or len(self._links) < needed:
                return
            self._running = self._make_head() if self._stage.is_first else self._make_follower()
            self._running.start()
            self._complete.notify_all()

    def _make_head(self) -> Head:
        stage, settings = self._stage, self._settings
        limits = SchedulerLimits(
            kv_blocks=stage.kv_blocks,
            block_size=stage.block_size,
            token_budget=settings.step_tokens_max,
            groups=self._stages,
            sequences_max=settings.sequences_max,
            waiting_max=settings.requests_waiting_max,
            context_length=stage.context_length,
            vocab_size=stage.vocab_size,
            eos_token_ids=stage.eos_token_ids,
        )
        return Head(
            stage,
            Scheduler(limits),
            self.epoch,
            self._links.get("out"),
            self._links.get("in"),
            self._on_tokens,
            self._on_lost,
        )

    def _make_follower(self) -> Follower:
        return Follower(
            self._stage,
            self.epoch,
            self._links["in"],
            self._links["out"],
            self._stage.is_last,
            self._on_lost,
        )

    def warm_up(self, timeout_seconds: float) -> None:
        """Send a request through all stages. Raises EngineLost; only the head can."""
        deadline = time.monotonic() + timeout_seconds
        with self._complete:
            self._complete.wait_for(
                lambda: self._closed or self._running is not None, timeout_seconds
            )
            running = self._running
        if not isinstance(running, Head):
            raise EngineLost(
                f"the head's links of epoch {self.epoch} were not there within "
                f"{timeout_seconds:.0f} s; see the other nodes' logs"
            )
        running.warm_up(max(0.1, deadline - time.monotonic()))

    def submit(self, request: GenerationRequest) -> None:
        """Raises RequestError or NotServing."""
        running = self._running
        if not isinstance(running, Head):
            raise NotServing("this stage is not a head at work", phase="ready")
        running.submit(request)

    def cancel(self, request_id: str) -> None:
        if isinstance(self._running, Head):
            self._running.cancel(request_id)

    def statistics(self) -> Mapping[str, float]:
        return self._running.statistics() if self._running is not None else {}

    def close(self, timeout_seconds: float) -> bool:
        """Close the links and end the threads; False when one hangs."""
        with self._complete:
            self._closed = True
            running, links = self._running, list(self._links.values())
            self._complete.notify_all()
        ended = running is None or running.close(timeout_seconds)
        for link in links:
            link.close()
        return ended


def retire(pipeline: Pipeline, patience_seconds: float) -> None:
    """Raises EngineLost when a step of it hangs: its memory is not free then."""
    if not pipeline.close(patience_seconds):
        raise EngineLost(f"a step of epoch {pipeline.epoch} hangs in its device")
