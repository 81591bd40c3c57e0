"""A tiny model, and engines that hold it as digests: right ones, wrong ones, none.

What an engine *holds* is what its weights are; what it *reports* is computed from that, as in
the real one. So a read that went wrong is reported honestly, and must never serve.
"""

import asyncio
import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from butterfly.channel import (
    Drop,
    FromEngine,
    GiveUp,
    Hello,
    LinkLost,
    Load,
    Loaded,
    LoadFailed,
    ModelSource,
    Prepare,
    Preparing,
    ToEngine,
    WarmedUp,
    WarmUp,
)
from butterfly.node.engine import Death, pause_seconds
from butterfly_cluster.commands import DescribeModel
from butterfly_cluster.state import ClusterState, ModelPlace
from butterfly_core.errors import EngineLost, SourceError
from butterfly_core.hardware import Capacity
from butterfly_core.layers import LayerRange, all_parts, stage_parts
from butterfly_core.model import ModelSpec
from butterfly_weights.checkpoint import Checkpoint

LAYERS = 8
_PART_BYTES = 1 << 24
_MEMORY_BYTES = 1 << 34


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


HOME = "/tiny"
"""Where the model of the configuration lies; ``/tiny-1`` and so on are other revisions."""


def digests_at(path: str) -> Mapping[str, str]:
    """What the parts at a source really are: one layer of each revision is its own."""
    _, _, revision = path.partition("-")
    own = f"layers.{int(revision) % LAYERS}" if revision else ""
    return {part: _hash(f"{part}{revision if part == own else ''}") for part in all_parts(LAYERS)}


def root_of(part_digests: Mapping[str, str]) -> str:
    """Stands for the Merkle root."""
    return _hash(repr(sorted(part_digests.items())))


def described(*, with_manifest: bool, path: str = HOME) -> DescribeModel:
    """The model as every node reads it from its source."""
    digests = digests_at(path)
    spec = ModelSpec(
        name="tiny",
        architecture="LlamaForCausalLM",
        layer_count=LAYERS,
        hidden_size=64,
        vocab_size=256,
        context_length=512,
        dtype="float32",
        tied=False,
        kv_bytes_per_token=256,
        part_bytes=dict.fromkeys(all_parts(LAYERS), _PART_BYTES),
        revision=_hash(path),
        manifest_root=root_of(digests) if with_manifest else None,
    )
    return DescribeModel(spec, digests if with_manifest else {})


@dataclass(frozen=True)
class SimReading:
    """Stands for ``Reading``."""

    described: DescribeModel
    path: str
    checkpoint: Checkpoint
    text: object

    def root_of(self, part_digests: Mapping[str, str]) -> str:
        return root_of(part_digests)


class SimModels:
    """Stands for ``ModelReader``: the source answers at once, and right."""

    name = "tiny"

    def __init__(self, *, with_manifest: bool, fails: Callable[[], bool]) -> None:
        """``fails`` says whether a source that is offered cannot be read now."""
        self._with_manifest, self._fails = with_manifest, fails
        self._offered: tuple[ModelPlace, SimReading] | None = None
        self.follow(None)

    def follow(self, place: ModelPlace | None) -> None:
        self.place = place
        self._path = place.source_path if place else HOME
        self.found = self._read(self._path)

    def _read(self, path: str) -> SimReading:
        told = described(with_manifest=self._with_manifest, path=path)
        checkpoint = Checkpoint({}, {}, (), {}, None, told.spec.revision, "k")
        return SimReading(told, path, checkpoint, text=object())

    async def read_offered(self, place: ModelPlace) -> SimReading:
        await asyncio.sleep(0.01)
        if self._fails():
            raise SourceError("the bucket does not answer")
        self._offered = (place, self._read(place.source_path))
        return self._offered[1]

    def offered(self, place: ModelPlace) -> SimReading | None:
        return self._offered[1] if self._offered and self._offered[0] == place else None

    def source_of(self, _: ModelPlace, found: SimReading) -> ModelSource:
        return ModelSource("filesystem", found.path, None, None, None, 0)

    def engine_source(self) -> ModelSource:
        return ModelSource("filesystem", self._path, None, None, None, 0)

    def turn_to(self, _revision: str) -> bool:
        return False

    async def read_until_known(self, state: Callable[[], ClusterState]) -> None:
        self.follow(state().source)

    async def refresh(self) -> bool:
        return True


@dataclass
class Mischief:
    """What the engines of one machine do wrong, by its dice."""

    dice: random.Random
    corrupt_share: float = 0.0
    fail_share: float = 0.0
    slow_seconds: float = 0.0
    load_seconds: float = 0.2


@dataclass
class SimEngine:
    """Stands for ``Engine``: one run after another, each without what the last one held."""

    name: str
    mischief: Mischief
    on_message: Callable[[FromEngine], None]
    on_death: Callable[[Death], None]
    warm_up: Callable[[int], Any]
    """Awaited with the epoch; returns the problem, or None."""
    broken_link: Callable[[int], str | None]
    """Why the links of this epoch no longer stand, or None."""
    held: dict[str, str] = field(default_factory=dict)
    held_epoch: int = 0
    prepared: tuple[str, dict[str, str]] = ("", {})
    """Of which model, and what."""
    running: str | None = None
    runs: int = 0
    deaths_total: int = 0
    process_id: int | None = None

    def __post_init__(self) -> None:
        self._restart = asyncio.Event()
        self._dying = asyncio.Event()
        self._orders: asyncio.Queue[Load | WarmUp | Prepare] = asyncio.Queue()
        self._deaths_in_a_row = 0

    def restart(self) -> None:
        self._restart.set()

    def die(self) -> None:
        """The process ends; its node is told."""
        self._dying.set()

    async def send(self, message: ToEngine, _: object = None) -> None:
        if self.running is None:
            raise EngineLost("no engine process runs")
        match message:
            case Load() | WarmUp() | Prepare():
                self._orders.put_nowait(message)
            case GiveUp():
                self.prepared = ("", {})
            case Drop():
                self.held, self.held_epoch, self.prepared = {}, 0, ("", {})
            case _:
                pass

    async def run(self) -> None:
        while True:
            self._restart.clear()
            self._dying.clear()
            await self._run_once()
            self.deaths_total += 1
            self._deaths_in_a_row += 1
            self.on_death(Death("it died in the simulation"))
            await self._restart.wait()
            await asyncio.sleep(pause_seconds(self._deaths_in_a_row))

    async def _run_once(self) -> None:
        await asyncio.sleep(self.mischief.dice.uniform(0.05, 0.4))
        self.runs += 1
        self.running = f"{self.name}-{self.runs}"
        self._orders = asyncio.Queue()
        self.on_message(Hello(self.running, _capacity()))
        work = asyncio.ensure_future(self._obey())
        watch = asyncio.ensure_future(self._watch_links())
        try:
            await self._dying.wait()
        finally:
            work.cancel()
            watch.cancel()
            self.running, self.held, self.held_epoch = None, {}, 0
            self.prepared = ("", {})

    async def _obey(self) -> None:
        """One order after another; a newer load ends an older one."""
        while True:
            order = await self._orders.get()
            if isinstance(order, WarmUp):
                await asyncio.sleep(0.05)
                self.on_message(WarmedUp(order.epoch, await self.warm_up(order.epoch)))
            elif isinstance(order, Prepare):
                await self._prepare(order)
            elif self._orders.empty():
                await self._load(order)

    async def _prepare(self, order: Prepare) -> None:
        told = await self._fetch(order.load)
        if isinstance(told, Loaded):
            self.prepared = (order.load.model, dict(told.part_digests))
        if told is not None:
            self.on_message(Preparing(order.number, told))

    async def _load(self, order: Load) -> None:
        self.held, self.held_epoch = {}, 0
        model, ready = self.prepared
        if model == order.model:
            told: Loaded | LoadFailed | None = Loaded(order.epoch, ready, 0, 0, (), ())
        else:
            told = await self._fetch(order)
        if isinstance(told, Loaded):
            self.held, self.held_epoch = dict(told.part_digests), order.epoch
            self._deaths_in_a_row = 0
        self.prepared = ("", {})
        if told is not None:
            self.on_message(told)

    async def _fetch(self, order: Load) -> Loaded | LoadFailed | None:
        """What a load comes to; None when a newer order ends it."""
        dice = self.mischief.dice
        layers = LayerRange(order.start, order.stop)
        took = self.mischief.load_seconds * len(layers) * dice.uniform(0.5, 1.5)
        await asyncio.sleep(took + self.mischief.slow_seconds)
        if not self._orders.empty():
            return None
        if dice.random() < self.mischief.fail_share:
            return LoadFailed(order.epoch, "the bucket does not answer", "SourceError")
        parts = stage_parts(layers, order.layer_count, tied=order.tied)
        true = digests_at(order.source.source_path)
        held = {part: true[part] for part in parts}
        if dice.random() < self.mischief.corrupt_share:
            held[dice.choice(parts)] = _hash(f"wrong {dice.random()}")
        return Loaded(order.epoch, held, 0, 0, (), ())

    async def _watch_links(self) -> None:
        told = 0
        while True:
            await asyncio.sleep(0.25)
            if self.held_epoch and self.held_epoch != told:
                broken = self.broken_link(self.held_epoch)
                if broken is not None:
                    told = self.held_epoch
                    self.on_message(LinkLost(told, broken))


def _capacity() -> Capacity:
    return Capacity("cpu", "simulated", _MEMORY_BYTES, _MEMORY_BYTES, 1e10, 1e11)
