"""One whole node of the simulation: the product's own parts, with a simulated world around them.

As ``NodeProgram`` wires them, but for what is outside of the process: the network, the disk's
flush, the model's source, the engine, and the planner's thread.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from butterfly.config import NodeConfig
from butterfly.node.addresses import AddressBook
from butterfly.node.consensus import Consensus
from butterfly.node.coordinator import Coordinator, policy_of
from butterfly.node.discovery import NodeDiscovery
from butterfly.node.effects import Effects
from butterfly.node.engine import Engine
from butterfly.node.links import Links
from butterfly.node.listening import EngineEars
from butterfly.node.local import Local
from butterfly.node.model import ModelReader
from butterfly.node.offering import offer_model
from butterfly.node.outlook import Outlook
from butterfly.node.preparing import Preparer
from butterfly.node.replica import Replica
from butterfly.node.reports import Reports
from butterfly.node.runner import Runner
from butterfly.node.serving import HeadDesk, Ingress
from butterfly.node.settings import registration_of
from butterfly.node.strangers import CLUSTER_KEY
from butterfly.node.telling import leave_cluster, tell_the_cluster
from butterfly.node.whereabouts import WHERE_KEY
from butterfly_cluster.commands import Command
from butterfly_cluster.founding_messages import (
    Proposal,
    Verdict,
    WhoAmI,
    verdict_from_map,
    whoami_from_map,
)
from butterfly_cluster.identity import DataDir, load_or_create
from butterfly_cluster.lifecycle import DrainRequested, NodeState, Started
from butterfly_cluster.node_duties import Facts
from butterfly_cluster.raft import ChannelLike
from butterfly_cluster.registry import Directory
from butterfly_cluster.state import Assignment, ClusterState, ModelPlace
from butterfly_core.address import Address, parse_address
from butterfly_core.errors import NotServing
from butterfly_core.ids import NodeId
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from butterfly_wire.tickets import DataTicket
from tests.sim.nodes.engines import Mischief, SimEngine, SimModels
from tests.sim.nodes.wire import Body, Channel, Handler, Wire

_ASK_SECONDS = 2.0


class SimPool:
    """Stands for ``PeerPool``."""

    def __init__(self, node: "SimNode", wire: Wire) -> None:
        self._node, self._wire = node, wire

    async def call(
        self,
        address: Address,
        method: str,
        body: Body,
        *,
        timeout_seconds: float,
        expect: NodeId | None = None,
    ) -> Body:
        return await self._wire.call(
            self._node, address, method, body, timeout_seconds=timeout_seconds, expect=expect
        )


class SimPeers:
    """Stands for ``WirePeers``."""

    def __init__(self, node: "SimNode", wire: Wire, addresses: AddressBook) -> None:
        self._node, self._wire, self._addresses = node, wire, addresses

    async def whoami(self, address: str, /) -> WhoAmI:
        here, of = self._node.config.node.advertise_address, self._node.consensus.cluster_id
        told = {WHERE_KEY: str(here), CLUSTER_KEY: of}
        return whoami_from_map(await self._ask(address, "whoami", told))

    async def promise(self, address: str, proposal: Proposal, /, *, expect: NodeId) -> Verdict:
        return verdict_from_map(await self._ask(address, "promise", proposal.to_map(), expect))

    async def _ask(
        self, address: str, method: str, body: Body, expect: NodeId | None = None
    ) -> Body:
        where = parse_address(address)
        return await self._wire.call(
            self._node, where, method, body, timeout_seconds=_ASK_SECONDS, expect=expect
        )

    async def dial(self, peer: NodeId, /, *, timeout_seconds: float) -> Channel:
        async with asyncio.timeout(timeout_seconds):
            return await self._wire.dial(self._node, self._addresses.next_of(peer), peer)


class SimLinks(Links):
    """The product's, but no sockets: ``joined`` is the epoch whose out-going link stands."""

    joined: int = 0

    async def connect(self, assignment: Assignment) -> None:
        await super().connect(assignment)
        self.joined = assignment.epoch

    async def _open(self, following: NodeId, epoch: int) -> None:
        body = {"epoch": epoch, "mode": self._mode}
        address = self._addresses.of(following)
        await self._pool.call(address, "open_link", body, timeout_seconds=3.0, expect=following)

    def _issue(self, epoch: int) -> DataTicket:
        return DataTicket(b"t" * 32, b"d" * 32, b"a" * 32, self._mode)


class WatchedReplica(Replica):
    """The product's, telling the world of each entry."""

    on_applied: Callable[[int, bytes, ClusterState], None]

    def apply(self, index: int, body: bytes) -> None:
        before = self.state
        super().apply(index, body)
        self.on_applied(index, body, before)


class WatchedConsensus(Consensus):
    """The product's, telling the world of each wish."""

    on_wish: Callable[[Command], None]

    async def propose(self, command: Command, *, timeout_seconds: float) -> int:
        self.on_wish(command)
        return await super().propose(command, timeout_seconds=timeout_seconds)


@dataclass(frozen=True)
class Surroundings:
    """What the world lends to a node."""

    wire: Wire
    clock: Callable[[], float]
    dice: random.Random
    mischief: Mischief
    with_manifest: bool
    context: Any
    directory: Directory
    pipeline_problem: Callable[[int], str | None]
    link_problem: Callable[["SimNode", int], str | None]
    on_applied: Callable[["SimNode", int, bytes, ClusterState], None]
    on_wish: Callable[["SimNode", Command], None]


async def _at_once(function: Callable[[], Any]) -> Any:
    await asyncio.sleep(0.001)
    return function()


class SimNode:
    """``run`` lives until cancelled, drained, or failed for good."""

    def __init__(self, machine: str, config: NodeConfig, around: Surroundings) -> None:
        self.machine, self.config = machine, config
        self.around = around
        directory: Path = config.node.data_dir
        self.data_dir: DataDir = load_or_create(directory, random_bytes=around.dice.randbytes)
        self.node_id = self.data_dir.identity.node_id
        self.policy = policy_of(config)
        self.local = Local(Facts(registration_of(config, self.node_id)))
        self.replica = WatchedReplica(self.local.changed)
        self.replica.on_applied = lambda index, body, before: around.on_applied(
            self, index, body, before
        )
        self.left = asyncio.Event()
        self.spawned: set[asyncio.Future[None]] = set()
        self.newest_applied = (0, 0)
        """Index and epoch."""
        self._make_parts()
        self.handlers: Mapping[str, Handler] = {
            "whoami": self.consensus.handle_whoami,
            "promise": self.consensus.handle_promise,
            "report": self.reports.handle,
            "open_link": self.links.handle_open,
        }

    def _make_parts(self) -> None:
        me, local, replica, around = self.node_id, self.local, self.replica, self.around
        pool = cast(PeerPool, SimPool(self, around.wire))
        path = self.data_dir.path / "peers.json"
        self.addresses = AddressBook(path, lambda: replica.state)
        self.consensus = WatchedConsensus(
            self.config,
            self.data_dir,
            local,
            peers=SimPeers(self, around.wire, self.addresses),
            directory=around.directory,
            addresses=self.addresses,
            replica=replica,
            clock=around.clock,
            rng=around.dice,
            sync_file=lambda _: None,
        )
        self.consensus.on_wish = lambda command: around.on_wish(self, command)
        self.engine = SimEngine(
            f"{self.machine}-{around.dice.randrange(1 << 32):08x}",
            around.mischief,
            on_message=lambda message: self.ears.hear(message),
            on_death=lambda death: self.ears.mourn(death),
            warm_up=self._warm_up,
            broken_link=lambda epoch: around.link_problem(self, epoch),
        )
        engine = cast(Engine, self.engine)
        mischief = around.mischief
        models = cast(
            ModelReader,
            SimModels(
                with_manifest=around.with_manifest,
                fails=lambda: mischief.dice.random() < mischief.fail_share,
            ),
        )
        self.links = SimLinks(
            me,
            mode="plain",
            listener=cast(PeerListener, None),
            pool=pool,
            addresses=self.addresses,
            engine=engine,
            epoch=lambda: local.node.epoch,
            state=lambda: replica.state,
        )
        desk = HeadDesk(engine, replica, me)
        self.ingress = Ingress(
            me,
            local,
            replica=replica,
            models=models,
            desk=desk,
            pool=pool,
            addresses=self.addresses,
            admission_problem=self.admission_problem,
        )
        self.reports = Reports(
            me,
            local,
            pool=pool,
            addresses=self.addresses,
            leader=lambda: self.consensus.leader,
            active_requests=lambda: self.ingress.active_requests,
            state=lambda: replica.state,
            clock=around.clock,
            lost=lambda: self.consensus.lost_peers,
        )
        self._make_decisions(engine, models, desk)

    def _make_decisions(self, engine: Engine, models: ModelReader, desk: HeadDesk) -> None:
        me, local, replica = self.node_id, self.local, self.replica
        self.outlook = Outlook(
            me,
            self.config,
            consensus=self.consensus,
            replica=replica,
            reports=lambda: self.reports,
            discovery=cast(NodeDiscovery, None),
            tls=cast(TlsIdentity, None),
        )
        self.effects = Effects(
            me,
            local,
            replica=replica,
            models=models,
            engine=engine,
            links=self.links,
            join=self.consensus.join,
            leave=self._leave,
        )
        self.preparer = Preparer(me, local, replica=replica, models=models, engine=engine)
        self.models = models
        self.runner = Runner(local, replica, self.effects.handlers(), look=self._look)
        self.ears = EngineEars(
            me,
            local,
            effects=self.effects,
            desk=desk,
            post=self.runner.post,
            capacity_share=1.0,
            on_preparing=self.preparer.take,
        )
        self.coordinator = Coordinator(
            me,
            self.config,
            consensus=self.consensus,
            replica=replica,
            reports=self.reports,
            models=models,
            refuses=lambda address: self.around.wire.refuses(self, address),
            clock=self.around.clock,
            in_thread=_at_once,
        )

    async def run(self) -> None:
        self.runner.post(Started())
        living = asyncio.ensure_future(self._live())
        leaving = asyncio.ensure_future(self.left.wait())
        try:
            await asyncio.wait({living, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if living.done():
                living.result()
        finally:
            everything: list[asyncio.Future[Any]] = [living, leaving, *self.spawned]
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
            self.data_dir.close()

    async def _live(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for part in (
                self.consensus.run(),
                self.runner.run(),
                self.reports.run(),
                self.coordinator.run(),
                self.preparer.run(),
                self._follow(),
                tell_the_cluster(self.consensus, self.replica, self.local),
                self.engine.run(),
            ):
                tasks.create_task(part)

    async def _follow(self) -> None:
        """As ``ModelReader.keep_current``."""
        while True:
            if self.models.place != self.replica.state.source:
                self.models.follow(self.replica.state.source)
            await self.local.changed.wait(1.0)

    async def offer(self, place: ModelPlace) -> int:
        """As a person asks for it over HTTP. Raises ButterflyError."""
        return await offer_model(self.consensus, lambda: self.replica.state, place)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(work, context=self.around.context)
        self.spawned.add(task)
        task.add_done_callback(self.spawned.discard)

    async def accept(self, channel: ChannelLike) -> None:
        await self.consensus.accept(channel)

    def drain(self) -> None:
        if not self.local.draining:
            self.local.set_facts(draining=True)
            self.runner.post(DrainRequested())

    async def _leave(self) -> None:
        await leave_cluster(self.consensus, self.replica, self.node_id)
        self.left.set()

    async def _warm_up(self, epoch: int) -> str | None:
        return self.around.pipeline_problem(epoch)

    def _look(self) -> None:
        problem = self.admission_problem()
        if problem != self.local.facts.problem:
            self.local.set_facts(problem=problem)
        self.addresses.save()

    def admission_problem(self) -> str | None:
        return self.outlook.admission_problem()

    @property
    def admits(self) -> bool:
        """What a client that asks now would find, by the product's own check."""
        try:
            self.ingress.text()
        except NotServing:
            return False
        return True

    @property
    def is_operational(self) -> bool:
        return self.local.node.state is NodeState.OPERATIONAL
