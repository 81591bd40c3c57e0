"""The composition root of the node process: every part is made here, and only here.

Parts know each other through what is handed in. The lifetime of everything is one TaskGroup:
when one part fails for good, the node ends and says why.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from butterfly.api.auth import load_api_keys
from butterfly.config import NodeConfig
from butterfly.node.consensus import Consensus
from butterfly.node.coordinator import Coordinator
from butterfly.node.effects import Effects
from butterfly.node.engine import Engine
from butterfly.node.face import Face
from butterfly.node.gauges import Meters
from butterfly.node.links import Links
from butterfly.node.listening import EngineEars
from butterfly.node.local import Local
from butterfly.node.model import ModelReader
from butterfly.node.network import make_network
from butterfly.node.observing import refuses
from butterfly.node.outlook import Outlook
from butterfly.node.peer_links import PeerLinks
from butterfly.node.preparing import Preparer
from butterfly.node.replica import Replica
from butterfly.node.reports import Reports
from butterfly.node.runner import Runner
from butterfly.node.secrecy import watch_credentials
from butterfly.node.serving import HeadDesk, Ingress
from butterfly.node.settings import (
    EMBEDDED_ROOT,
    cache_directory,
    engine_settings,
    registration_of,
)
from butterfly.node.telling import leave_cluster, tell_the_cluster
from butterfly_cluster.identity import DataDir
from butterfly_cluster.lifecycle import DrainRequested, NodeState, Phase, Started
from butterfly_cluster.node_duties import Facts
from butterfly_core.ids import short

log = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 20.0
_JOINING_PHASES: Final = (Phase.DISCOVERY, Phase.ELECTION, Phase.ASSIGNMENT)


class Stopped(Exception):
    """The node drained and left; ends the TaskGroup."""


class NodeProgram:
    """One node. ``run`` returns after a drain, and raises when a part fails for good."""

    def __init__(self, config: NodeConfig, data_dir: DataDir) -> None:
        self._config = config
        self._me = data_dir.identity.node_id
        self._local = Local(Facts(registration_of(config, self._me)))
        if data_dir.story:
            self._local.events.append(data_dir.story)
        self._replica = Replica(self._local.changed)
        self._left = asyncio.Event()
        self._make_network(data_dir)
        self._make_engine(data_dir)
        self._make_requests()
        self._make_decisions()

    def _make_network(self, data_dir: DataDir) -> None:
        config, replica = self._config, self._replica
        network = make_network(config, data_dir, self._local, lambda: replica.state)
        self._listener, self._pool = network.listener, network.pool
        self._credentials, self._traffic = network.credentials, network.traffic
        self._addresses, self._discovery = network.addresses, network.discovery
        self._consensus = Consensus(
            config,
            data_dir,
            self._local,
            peers=network.peers,
            directory=network.discovery,
            addresses=network.addresses,
            replica=replica,
        )
        self._outlook = Outlook(
            self._me,
            config,
            consensus=self._consensus,
            replica=replica,
            reports=lambda: self._reports,
            discovery=network.discovery,
            tls=network.tls,
        )

    def _make_engine(self, data_dir: DataDir) -> None:
        config, local, replica = self._config, self._local, self._replica
        self._models = ModelReader(
            config.model, local, embedded_root=EMBEDDED_ROOT, cache=cache_directory(config)
        )
        self._engine = Engine(
            engine_settings(config),
            log_path=data_dir.path / "engine.log",
            on_message=lambda message: self._ears.hear(message),
            on_death=lambda death: self._ears.mourn(death),
        )
        self._links = Links(
            self._me,
            mode=config.security.data_plane,
            listener=self._listener,
            pool=self._pool,
            addresses=self._addresses,
            engine=self._engine,
            epoch=lambda: local.node.epoch,
            state=lambda: replica.state,
        )
        self._peer_links = PeerLinks(
            self._me,
            enabled=config.model.peers,
            mode=config.security.data_plane,
            listener=self._listener,
            pool=self._pool,
            addresses=self._addresses,
            engine=self._engine,
            state=lambda: replica.state,
        )

    def _make_requests(self) -> None:
        config, local, replica = self._config, self._local, self._replica
        self._desk = HeadDesk(self._engine, replica, self._me)
        self._ingress = Ingress(
            self._me,
            local,
            replica=replica,
            models=self._models,
            desk=self._desk,
            pool=self._pool,
            addresses=self._addresses,
            admission_problem=self._outlook.admission_problem,
        )
        keys_file = config.security.api_keys_file
        self._face = Face(
            config,
            local=local,
            replica=replica,
            ingress=self._ingress,
            surroundings=self._outlook.surroundings,
            meters=Meters(
                traffic=self._traffic.statistics,
                port=self._listener.statistics,
                log=self._consensus.statistics,
            ),
            consensus=self._consensus,
            cache=cache_directory(config),
            api_keys=load_api_keys(keys_file) if keys_file else frozenset(),
            engine=self._engine,
        )

    def _make_decisions(self) -> None:
        local, replica = self._local, self._replica
        self._reports = Reports(
            self._me,
            local,
            pool=self._pool,
            addresses=self._addresses,
            leader=lambda: self._consensus.leader,
            active_requests=lambda: self._ingress.active_requests,
            state=lambda: replica.state,
            lost=lambda: self._consensus.lost_peers,
            can_vote=lambda: self._consensus.disk_problem is None,
        )
        self._effects = Effects(
            self._me,
            local,
            replica=replica,
            models=self._models,
            engine=self._engine,
            links=self._links,
            join=self._consensus.join,
            leave=self._leave,
        )
        self._preparer = Preparer(
            self._me, local, replica=replica, models=self._models, engine=self._engine
        )
        self._runner = Runner(local, replica, self._effects.handlers(), look=self._look)
        self._ears = EngineEars(
            self._me,
            local,
            effects=self._effects,
            desk=self._desk,
            post=self._runner.post,
            capacity_share=self._config.node.capacity,
            want_peers=self._peer_links.want,
            on_preparing=self._preparer.take,
        )
        self._coordinator = Coordinator(
            self._me,
            self._config,
            consensus=self._consensus,
            replica=replica,
            reports=self._reports,
            models=self._models,
            refuses=refuses,
        )

    def log_context(self) -> Mapping[str, object]:
        """What every line of the log says of this node."""
        local = self._local
        return {
            "node": short(self._me),
            "phase": local.phase.value,
            "progress": local.progress_percent,
        }

    def drain(self) -> None:
        """Stop admitting, let running answers end, leave the cluster, return from ``run``."""
        if self._local.draining:
            return
        log.info("leaving the cluster")
        self._local.set_facts(draining=True)
        self._runner.post(DrainRequested())

    async def run(self) -> None:
        """Raises ConfigError before anything runs when a port is taken."""
        self._answer_calls()
        await self._listener.start()
        try:
            await self._face.start()
            try:
                await self._live()
            finally:
                await self._face.close()
        finally:
            await self._pool.close()
            await self._listener.close()

    async def _live(self) -> None:
        self._runner.post(Started())
        try:
            async with asyncio.TaskGroup() as tasks:
                parts = [
                    self._discovery.run(),
                    self._consensus.run(),
                    self._runner.run(),
                    self._models.keep_current(lambda: self._replica.state),
                    self._reports.run(),
                    self._links.run(),
                    self._peer_links.run(),
                    self._coordinator.run(),
                    self._preparer.run(),
                    self._face.watch(),
                    tell_the_cluster(self._consensus, self._replica, self._local),
                    self._end_when_left(),
                    watch_credentials(self._credentials, self._local),
                ]
                if self._config.node.capacity > 0:
                    parts.append(self._engine.run())
                for part in parts:
                    tasks.create_task(part)
        except* Stopped:
            log.info("left the cluster")

    async def _end_when_left(self) -> None:
        await self._left.wait()
        raise Stopped

    async def _leave(self) -> None:
        await self._face.drain(DRAIN_SECONDS)
        await leave_cluster(self._consensus, self._replica, self._me)
        self._left.set()

    def _answer_calls(self) -> None:
        listener = self._listener
        listener.on_call("whoami", self._consensus.handle_whoami)
        listener.on_call("promise", self._consensus.handle_promise)
        listener.on_call("report", self._reports.handle)
        listener.on_call("open_link", self._links.handle_open)
        listener.on_call("open_peer_link", self._peer_links.handle_open)
        listener.on_stream("generate", self._desk.handle_generate)
        listener.on_channel("raft", self._consensus.accept)

    def _look(self) -> None:
        """Bring the local facts up to date before each decision."""
        local = self._local
        problem = self._outlook.admission_problem()
        if problem != local.facts.problem:
            local.set_facts(problem=problem)
        if local.node.state is NodeState.JOINING and local.phase in _JOINING_PHASES:
            local.enter(self._joining_phase())
        self._addresses.save()

    def _joining_phase(self) -> Phase:
        if not self._consensus.joined:
            return Phase.DISCOVERY
        return Phase.ELECTION if self._consensus.leader is None else Phase.ASSIGNMENT
