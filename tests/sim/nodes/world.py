"""Machines, the nodes that run on them, and what a seed decides about them."""

import asyncio
import contextlib
import hashlib
import random
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from butterfly.config import NodeConfig
from butterfly.config.discovery_schema import DiscoverySection
from butterfly.config.schema import (
    ClusterSection,
    EngineSection,
    ModelSection,
    NodeSection,
    SecuritySection,
)
from butterfly_cluster.founding_sight import SourceName
from butterfly_cluster.registry import Directory
from butterfly_core.address import Address
from butterfly_core.ids import NodeId
from tests.sim.nodes.engines import HOME, Mischief
from tests.sim.nodes.node import SimNode, Surroundings
from tests.sim.nodes.sources import StaticList, Truth, directory_of
from tests.sim.nodes.watch import Watch
from tests.sim.nodes.wire import Body, Handler, Wire
from tests.sim.virtual_loop import VirtualLoop, context_of, the_loop

Role = Literal["worker", "coordinator"]


@dataclass(frozen=True)
class Plot:
    """What is true of one cluster before anything goes wrong."""

    founders: int
    late: int = 0
    source: SourceName = "static"
    """All others than ``static`` need a ``quorum_size`` of more than half of all machines."""
    lone_coordinator: bool = False
    """One machine with the role coordinator and no seeds; all others list only it."""
    quorum_size: int = 1
    with_manifest: bool = True
    grace_seconds: float = 1.0
    max_voters: int = 5
    promise_strike_share: float = 0.0
    """How often a machine dies right after a promise was given."""
    offer_share: float = 0.0
    """How often, besides, another revision of the model is offered while it serves."""
    depose_share: float = 0.0
    """How often, besides, a coordinator loses the lead while it probes who is dead."""


@dataclass
class Machine:
    """A place where a node may run; its disk outlives the process."""

    name: str
    number: int
    address: Address
    directory: Path
    mischief: Mischief
    node: SimNode | None = None
    task: asyncio.Task[None] | None = None
    clock_ahead_seconds: float = 0.0
    is_paused: bool = False
    starts: int = 0
    moves: int = 0
    retired: set[NodeId] = field(default_factory=set)
    """Ids that were lost with the disk."""

    @property
    def where(self) -> str:
        return str(self.address)

    @property
    def is_up(self) -> bool:
        return self.node is not None

    @property
    def node_id(self) -> NodeId | None:
        return self.node.node_id if self.node else None


class World:
    """See the module. All of it belongs to one ``VirtualLoop``."""

    def __init__(self, seed: int, directory: Path, plot: Plot) -> None:
        self.seed, self.plot, self.directory = seed, plot, directory
        self.dice = random.Random(f"world {seed}")
        self.context = context_of("")
        self.wire = Wire(seed, self.context)
        self.machines = [self._machine(number) for number in range(plot.founders + plot.late)]
        self.watch = Watch(self)
        self.truth = Truth(
            self.machines,
            now=lambda: self.now,
            is_heard=lambda source, target: not self.wire.ways.is_cut(source, target),
            dice=random.Random(f"{seed} sources"),
        )
        self.story: list[tuple[float, str]] = []
        self._background: set[asyncio.Task[None]] = set()

    def _machine(self, number: int) -> Machine:
        name = f"m{number}"
        dice = random.Random(f"{self.seed} engine {name}")
        mischief = Mischief(dice, load_seconds=0.05)
        return Machine(name, number, _address(number, 0), self.directory / name, mischief)

    @property
    def loop(self) -> VirtualLoop:
        return the_loop()

    @property
    def now(self) -> float:
        return self.loop.time()

    @property
    def running(self) -> list[SimNode]:
        return [machine.node for machine in self.machines if machine.node is not None]

    def node_of(self, node_id: NodeId) -> SimNode | None:
        return next((node for node in self.running if node.node_id == node_id), None)

    def machine_of(self, node: SimNode) -> Machine:
        return self.machines[int(node.machine[1:])]

    def tell(self, what: str) -> None:
        self.story.append((round(self.now, 3), what))

    def fingerprint(self) -> str:
        """Equal for equal stories."""
        told = repr((self.story, self.wire.log, sorted(self.watch.applied)))
        return hashlib.sha256(told.encode()).hexdigest()

    def leader(self) -> SimNode | None:
        """The node that believes so in the newest term."""
        leading = [node for node in self.running if node.consensus.leader == node.node_id]
        return max(leading, key=lambda node: node.consensus.term, default=None)

    def in_background(self, work: Any) -> None:
        """Run beside the story, until the world ends."""
        task = self.loop.create_task(work, context=self.context)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Nodes come and go.

    def start(self, machine: Machine) -> None:
        if machine.task is not None:
            return
        machine.starts += 1
        context = context_of(machine.name)
        dice = random.Random(f"{self.seed} {machine.name} {machine.starts}")
        loop = self.loop
        around = Surroundings(
            wire=self.wire,
            clock=lambda: loop.time() + machine.clock_ahead_seconds,
            dice=dice,
            mischief=machine.mischief,
            with_manifest=self.plot.with_manifest,
            context=context,
            pipeline_problem=lambda epoch: self._pipeline_problem(machine, epoch),
            link_problem=self._link_problem,
            directory=self._directory(machine),
            on_applied=self.watch.note_applied,
            on_wish=self.watch.note_wish,
        )
        node = context.run(SimNode, machine.name, self._config(machine), around)
        node.handlers = {**node.handlers, "promise": self._struck(node.handlers["promise"], node)}
        if node.node_id in machine.retired:
            self.watch.violate(f"{machine.name} came back under the lost id {node.node_id}")
        machine.node = node
        self.tell(f"{machine.name} starts at {machine.address} as {node.node_id[:6]}")
        self.wire.listen(machine.address, node)
        machine.task = loop.create_task(self._live(machine, node), context=context)

    async def _live(self, machine: Machine, node: SimNode) -> None:
        try:
            await node.run()
            self.tell(f"{machine.name} left")
        except* Exception as group:  # noqa: BLE001 - whatever ends a node is found out
            self.watch.violate(f"{machine.name} ended by itself: {group.exceptions}")
        finally:
            self.wire.drop(node, silently=False)
            if machine.node is node:
                machine.node = None
            machine.task = None

    async def crash(self, machine: Machine, *, silently: bool = False) -> None:
        """As ``kill -9`` or, ``silently``, as a cut of power: nothing is said on the way out."""
        node, task = machine.node, machine.task
        if node is None or task is None:
            return
        self.tell(f"{machine.name} crashes{' silently' if silently else ''}")
        self.watch.note_identity(node)
        self.wire.drop(node, silently=silently)
        machine.node = None
        task.cancel()
        self.resume(machine)
        with contextlib.suppress(asyncio.CancelledError):
            await task
        node.data_dir.close()  # a task that never ran has closed nothing
        machine.task = None

    def pause(self, machine: Machine) -> None:
        """As SIGSTOP, or a hypervisor that is stuck."""
        machine.is_paused = True
        self.loop.pause(machine.name)

    def resume(self, machine: Machine) -> None:
        machine.is_paused = False
        self.loop.resume(machine.name)

    def wipe(self, machine: Machine, *, names: tuple[str, ...] = ()) -> None:
        """Lose the disk of a machine that does not run, or only some files of it."""
        assert machine.task is None
        self.tell(f"{machine.name} loses {', '.join(names) or 'its disk'}")
        machine.retired |= self.watch.ids_of(machine)
        if not names:
            shutil.rmtree(machine.directory, ignore_errors=True)
        for name in names:
            (machine.directory / name).unlink(missing_ok=True)

    def may_lose(self, machine: Machine) -> bool:
        """Whether the promise of no second cluster, and a majority, outlive this disk.

        Disks of a majority of the founders, or of the voters, must not be lost; a founder that
        has promised and not joined yet counts as lost with its promise.
        """
        leader, node = self.leader(), machine.node
        founders, needed = self.machines, self.plot.quorum_size
        if self.plot.source == "static":
            founders = founders[: 1 if self.plot.lone_coordinator else self.plot.founders]
            needed = len(founders) // 2 + 1
        if leader is None or node is None or not node.consensus.joined:
            return False
        unbound = sum(1 for founder in founders if founder is machine or not _is_bound(founder))
        if unbound >= needed:
            return False
        lost = {node.node_id}.union(*(other.retired for other in self.machines))
        views = {other.consensus.voters for other in self.running if other.consensus.joined}
        return all(2 * len(voters - lost) > len(voters) for voters in views)

    def move(self, machine: Machine) -> None:
        """Give a machine that does not run another address."""
        assert machine.task is None
        machine.moves += 1
        machine.address = _address(machine.number, machine.moves)
        self.tell(f"{machine.name} moves to {machine.address}")

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator["World"]:
        self.in_background(self.watch.run())
        try:
            yield self
        finally:
            for task in self._background:
                task.cancel()
            await asyncio.gather(*self._background, return_exceptions=True)
            for machine in self.machines:
                await self.crash(machine)

    async def until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until something holds; False when it does not in time."""
        deadline = self.now + seconds
        while not holds():
            if self.now > deadline:
                return False
            await asyncio.sleep(0.05)
        return True

    # What a node is told, and what lies between engines.

    def _struck(self, handler: Handler, node: SimNode) -> Handler:
        async def promise(caller: NodeId, body: Body) -> Body:
            verdict = await handler(caller, body)
            if self.dice.random() < self.plot.promise_strike_share:
                asked = self.node_of(caller)
                victim = asked if asked and self.dice.random() < 0.5 else node
                self.in_background(self._strike_after_a_moment(self.machine_of(victim)))
            return verdict

        return promise

    async def _strike_after_a_moment(self, machine: Machine) -> None:
        """Kill the machine, or cut it off from all others for a while."""
        await asyncio.sleep(self.dice.choice([0.0, 0.002, 0.02]))
        if self.dice.random() < 0.5:
            await self.crash(machine, silently=self.dice.random() < 0.5)
            return
        self.tell(f"{machine.name} is cut off after a promise")
        self.cut_off([machine])
        await asyncio.sleep(self.dice.choice([1.0, 4.0, 8.0]))
        self.wire.ways.heal()

    def cut_off(self, group: list[Machine]) -> None:
        """Nothing gets through between these machines and the others."""
        for one in group:
            for other in self.machines:
                if other not in group:
                    self.wire.ways.cut(one.name, other.name)
                    self.wire.ways.cut(other.name, one.name)

    @property
    def _seeds(self) -> tuple[Address, ...]:
        """As the operator keeps them: who starts now is told of every move."""
        return tuple(machine.address for machine in self.machines[: self.plot.founders])

    def _directory(self, machine: Machine) -> Directory:
        if self.plot.source == "static":
            return StaticList([str(seed) for seed in self._config(machine).cluster.seed_nodes])
        dice = random.Random(f"{self.seed} source {machine.name} {machine.starts}")
        return directory_of(self.plot.source, self.truth, machine, dice)

    def _config(self, machine: Machine) -> NodeConfig:
        plot = self.plot
        role: Role = "worker"
        seeds = self._seeds if plot.source == "static" else ()
        if plot.lone_coordinator:
            role = "coordinator" if machine.number == 0 else "worker"
            seeds = () if machine.number == 0 else self._seeds[:1]
        return NodeConfig(
            cluster=ClusterSection(
                cluster_name="sim",
                discovery_method=plot.source,
                seed_nodes=seeds,
                quorum_size=plot.quorum_size,
                founding_grace_seconds=plot.grace_seconds,
                rebalance_after_seconds=1.0,
                max_voters=plot.max_voters,
            ),
            model=ModelSection(source_type="filesystem", source_path=HOME),
            node=NodeSection(
                role=role,
                advertise_address=machine.address,
                bind_address=machine.address,
                data_dir=machine.directory,
            ),
            discovery=DiscoverySection(),
            engine=EngineSection(kv_cache_tokens=16, workspace_bytes=0),
            security=SecuritySection(insecure=True),
        )

    def _pipeline_problem(self, machine: Machine, epoch: int) -> str | None:
        """Of a warm-up that the machine's engine, as the head, sends through all stages."""
        head = machine.node
        assignment = head.replica.state.assignment if head else None
        if assignment is None or assignment.epoch != epoch:
            return "there is another epoch"
        for stage in assignment.stages:
            node = self.node_of(stage.node_id)
            if node is None or node.engine.running != stage.engine:
                return "a stage is gone"
            if node.engine.held_epoch != epoch:
                return "a stage holds another epoch"
            if self._link_problem(node, epoch, must_stand=len(assignment.stages) > 1) is not None:
                return "a link is missing"
        return None

    def _link_problem(self, node: SimNode, epoch: int, must_stand: bool = False) -> str | None:
        if node.links.joined != epoch:
            return "no link" if must_stand else None
        assignment = node.replica.state.assignment
        if assignment is None or assignment.epoch != epoch or len(assignment.stages) < 2:
            return None
        ring = [stage.node_id for stage in assignment.stages]
        stage = assignment.stages[(ring.index(node.node_id) + 1) % len(ring)]
        following = self.node_of(stage.node_id)
        if following is None or following.engine.running != stage.engine:
            return "the next stage is gone"
        ways = self.wire.ways
        both = ((node.machine, following.machine), (following.machine, node.machine))
        return "the line is cut" if any(ways.is_cut(*way) for way in both) else None


def _is_bound(machine: Machine) -> bool:
    """True when a node that runs there belongs to the cluster."""
    return machine.node is not None and machine.node.consensus.joined


def _address(number: int, moves: int) -> Address:
    return Address(f"10.{moves}.0.{number + 1}", 7000)
