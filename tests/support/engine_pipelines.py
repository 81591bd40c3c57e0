"""A whole pipeline in one process: real stages, threads, links in memory, answers collected."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any

import torch

from butterfly_core.generation import FinishReason, GenerationRequest, SamplingParams, TokensEmitted
from butterfly_core.layers import LayerRange, part_of_tensor, stage_parts
from butterfly_engine.link import MemoryLink
from butterfly_engine.params import SchedulerLimits
from butterfly_engine.pipeline import Follower, Head
from butterfly_engine.scheduler import Scheduler
from butterfly_engine.stage import Stage

ANSWER_SECONDS = 60.0
GREEDY = SamplingParams(temperature=0.0)


def tensors_for(
    tensors: Mapping[str, torch.Tensor], layers: LayerRange, layer_count: int, *, tied: bool
) -> dict[str, torch.Tensor]:
    """Those tensors of a checkpoint that the holder of these layers is given."""
    parts = set(stage_parts(layers, layer_count, tied=tied))
    return {name: tensor for name, tensor in tensors.items() if part_of_tensor(name) in parts}


def make_stages(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    cuts: Sequence[int],
    *,
    kv_blocks: int = 64,
    block_size: int = 8,
) -> list[Stage]:
    """One stage for each pair of neighbours in ``cuts``, as (0, 2, 6)."""
    layer_count = cuts[-1]
    ranges = [LayerRange(*pair) for pair in pairwise(cuts)]
    tied = bool(config["tie_word_embeddings"])
    return [
        Stage(
            config,
            layers,
            tensors_for(tensors, layers, layer_count, tied=tied),
            kv_blocks=kv_blocks,
            block_size=block_size,
        )
        for layers in ranges
    ]


@dataclass
class Answers:
    """What a head emitted; waits without polling."""

    events: list[TokensEmitted] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, events: list[TokensEmitted]) -> None:
        with self.changed:
            self.events.extend(events)
            self.changed.notify_all()

    def tokens(self, request_id: str) -> list[int]:
        with self.changed:
            own = [event for event in self.events if event.request_id == request_id]
        return [token for event in own for token in event.token_ids]

    def ends(self, request_id: str) -> list[TokensEmitted]:
        with self.changed:
            own = [event for event in self.events if event.request_id == request_id]
        return [event for event in own if event.finish is not None]

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, ANSWER_SECONDS), "no answer in time"

    def wait_end(self, request_id: str) -> FinishReason:
        self.wait(lambda: bool(self.ends(request_id)))
        finish = self.ends(request_id)[0].finish
        assert finish is not None
        return finish


class Pipeline:
    """Head and followers over links in memory; a context manager that closes everything."""

    def __init__(self, stages: Sequence[Any], limits: SchedulerLimits, *, epoch: int = 7) -> None:
        self.answers = Answers()
        self.lost: list[tuple[int, Exception]] = []
        self.links = [MemoryLink() for _ in stages] if len(stages) > 1 else []
        self.head = Head(
            stages[0],
            Scheduler(limits),
            epoch,
            self.links[0] if self.links else None,
            self.links[-1] if self.links else None,
            self.answers.take,
            lambda error: self.lost.append((0, error)),
        )
        self.followers = [
            Follower(
                stage,
                epoch,
                self.links[place - 1],
                self.links[place],
                place == len(stages) - 1,
                self._note_loss(place),
            )
            for place, stage in enumerate(stages)
            if place
        ]

    def _note_loss(self, place: int) -> Callable[[Exception], None]:
        return lambda error: self.lost.append((place, error))

    def __enter__(self) -> "Pipeline":
        for follower in self.followers:
            follower.start()
        self.head.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.head.close()
        assert all([follower.close() for follower in self.followers])  # noqa: C419 - close all

    def submit(
        self,
        request_id: str,
        prompt: Sequence[int],
        tokens_max: int,
        sampling: SamplingParams = GREEDY,
        **more: Any,
    ) -> None:
        self.head.submit(GenerationRequest(request_id, tuple(prompt), tokens_max, sampling, **more))
