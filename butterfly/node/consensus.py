"""This node's way into the cluster and its part in the replicated log, over the wire.

``join`` lets it begin; ``run`` finds or founds the cluster and then takes part until cancelled.
Until then everything here says "not joined", and proposals raise NotServing.
"""

import asyncio
import logging
import os
import random
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from butterfly.config import NodeConfig
from butterfly.node.addresses import AddressBook
from butterfly.node.local import Local, Problem
from butterfly.node.replica import Replica
from butterfly.node.settings import founding_settings
from butterfly.node.strangers import Strangers
from butterfly.node.whereabouts import Whereabouts
from butterfly_cluster.commands import Command, encode_command
from butterfly_cluster.founding import AskPeers, Formation, Founding
from butterfly_cluster.founding_messages import proposal_from_map
from butterfly_cluster.identity import DataDir
from butterfly_cluster.raft import LAN, WAN, ChannelLike, RaftNode, Timing
from butterfly_cluster.registry import Directory
from butterfly_cluster.steady_clock import steady_seconds
from butterfly_core.address import Address
from butterfly_core.errors import NotServing
from butterfly_core.ids import ClusterId, NodeId

log = logging.getLogger(__name__)

JOIN_PROBLEM: Final = "not_joined"
DISK_PROBLEM: Final = "disk"
_WATCH_SECONDS: Final = 0.5
LOST_AFTER_ELECTIONS: Final = 2.0
"""So many election timeouts without a leader, and this node asks around where everybody is."""


class Peers(AskPeers, Protocol):
    """How other nodes are reached: the two questions of founding, and channels for the log."""

    async def dial(self, peer: NodeId, /, *, timeout_seconds: float) -> ChannelLike: ...


class Consensus:
    """See the module."""

    def __init__(
        self,
        config: NodeConfig,
        data_dir: DataDir,
        local: Local,
        *,
        peers: Peers,
        directory: Directory,
        addresses: AddressBook,
        replica: Replica,
        clock: Callable[[], float] = steady_seconds,
        rng: random.Random | None = None,
        sync_file: Callable[[int], None] = os.fdatasync,
    ) -> None:
        """``clock`` in seconds, ``rng`` and ``sync_file`` are for simulations."""
        self._me = data_dir.identity.node_id
        self._config = config
        self._data_dir = data_dir
        self._local = local
        self._peers = peers
        self._addresses = addresses
        self._replica = replica
        self._clock, self._rng, self._sync_file = clock, rng, sync_file
        self._whereabouts = Whereabouts(
            self._me,
            peers=peers,
            addresses=addresses,
            seeds=directory.seeds,
            cluster_id=lambda: self.cluster_id,
        )
        self._asked_to_join = asyncio.Event()
        self._founding = Founding(
            data_dir,
            founding_settings(config),
            directory,
            remembered=lambda: frozenset(map(str, addresses.known().values())),
        )
        self._strangers = Strangers(
            config.cluster.cluster_name,
            cluster_id=lambda: self.cluster_id,
            peers=peers,
            directory=directory,
            local=local,
            keep_claim=self._founding.keep_claim,
            refused=lambda: self._raft.strangers if self._raft else {},
            rng=rng,
        )
        self._raft: RaftNode | None = None
        self._places: Mapping[NodeId, tuple[Address, ...]] = {}
        self.leader_changes = 0
        self._last_leader: NodeId | None = None

    @property
    def joined(self) -> bool:
        return self._raft is not None

    @property
    def cluster_id(self) -> ClusterId | None:
        return self._data_dir.identity.cluster_id

    @property
    def leader(self) -> NodeId | None:
        return self._raft.leader if self._raft else None

    @property
    def term(self) -> int:
        return self._raft.term if self._raft else 0

    @property
    def commit_index(self) -> int:
        return self._raft.commit_index if self._raft else 0

    @property
    def voters(self) -> frozenset[NodeId]:
        return self._raft.voters if self._raft else frozenset()

    @property
    def leader_silent_seconds(self) -> float:
        """Since a leader with a majority was heard."""
        return self._raft.seconds_since_leader_heard if self._raft else float("inf")

    @property
    def disk_problem(self) -> str | None:
        """Why this node is mute: its disk failed, and it votes no more until a restart."""
        return self._raft.disk_problem if self._raft else None

    def matched_index(self, node_id: NodeId) -> int | None:
        """Up to where a node holds this leader's log; None when it is not connected."""
        return self._raft.matched_index(node_id) if self._raft else None

    def seconds_since_heard(self, node_id: NodeId) -> float:
        """Since the last word on the log's channel to a node; infinite without one."""
        return self._raft.seconds_since_heard(node_id) if self._raft else float("inf")

    @property
    def lost_peers(self) -> frozenset[NodeId]:
        """Whose channel for the log ended in the last minute and did not come back."""
        return self._raft.lost_peers if self._raft else frozenset()

    def voters_heard(self, within_seconds: float) -> int:
        """How many voters are heard, this node counted when it votes."""
        away = self.voters - {self._me}
        return len(self.voters) - sum(self.seconds_since_heard(v) > within_seconds for v in away)

    def statistics(self) -> Mapping[str, int | float]:
        """The log's numbers, for metrics; none before this node joined."""
        return self._raft.statistics() if self._raft else {}

    def join(self) -> None:
        """Begin; asking twice is harmless."""
        self._asked_to_join.set()

    async def run(self) -> None:
        """Raises ConfigError when it can never join, StorageError when its first write fails."""
        await self._asked_to_join.wait()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._tell_why_not_joined())
            formation = await self._founding.form_or_join(self._peers)
            watching.cancel()
        self._local.solved(JOIN_PROBLEM)
        raft = self._make_raft(formation)
        self._raft = raft
        self._founding.view = self._view
        self._local.changed.notify()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(raft.run())
            tasks.create_task(self._watch_leader())
            tasks.create_task(self._whereabouts.run(self._is_lost, self._missed))
            tasks.create_task(self._strangers.run())

    def _make_raft(self, formation: Formation) -> RaftNode:
        self._addresses.learn_all(formation.members)
        raft = RaftNode(
            me=self._me,
            voters=formation.voters,
            data_dir=self._data_dir.path,
            timing=self.timing,
            dial=self._dial,
            apply=self._replica.apply,
            snapshot=self._replica.snapshot,
            restore=self._replica.restore,
            learner=formation.learner,
            cluster_id=formation.cluster_id,
            clock=self._clock,
            rng=self._rng,
            sync_file=self._sync_file,
        )
        raft.introduce(frozenset(self._addresses.known()))
        return raft

    @property
    def timing(self) -> Timing:
        """How long Raft waits for what."""
        return WAN if self._config.cluster.profile == "wan" else LAN

    async def _dial(self, peer: NodeId) -> ChannelLike:
        return await self._peers.dial(peer, timeout_seconds=self.timing.connect_seconds)

    async def _tell_why_not_joined(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            self._local.report(Problem(JOIN_PROBLEM, self._founding.state.reason))

    async def _watch_leader(self) -> None:
        """Count the leaders that come, and learn who may be dialled."""
        while True:
            leader = self.leader
            if leader != self._last_leader and leader is not None:
                self.leader_changes += 1
                self._local.changed.notify()
            self._last_leader = leader
            if self._raft is not None:
                self._tell_whom_to_dial(self._raft)
            if self.disk_problem is not None:
                self._tell_of_the_disk(self.disk_problem)
            await asyncio.sleep(_WATCH_SECONDS)

    def _tell_whom_to_dial(self, raft: RaftNode) -> None:
        """Members only, as long as the cluster is heard; a lost node asks everybody it knows."""
        members, lost = frozenset(self._replica.state.members), self._is_lost()
        if self._me in members and not lost:
            self._addresses.keep_only(members | raft.voters)
        known = frozenset(self._addresses.known())
        raft.introduce(known if lost else members)
        places = {node: self._addresses.places_of(node) for node in known}
        for node in sorted(known):
            if self._places.get(node) != places[node]:
                raft.dial_anew(node)
        self._places = places

    def _tell_of_the_disk(self, problem: str) -> None:
        message = f"{problem}. Until then this node serves what it serves, and has no vote"
        if self._local.report(Problem(DISK_PROBLEM, message)):
            log.error("%s", message)
            self._local.changed.notify()

    def _is_lost(self) -> bool:
        return self.leader_silent_seconds > LOST_AFTER_ELECTIONS * self.timing.election_max_seconds

    def _missed(self) -> frozenset[NodeId]:
        """Members that are marked down, while this node leads: they may look for it elsewhere."""
        if self.leader != self._me:
            return frozenset()
        members = self._replica.state.members.values()
        return frozenset(member.node_id for member in members if not member.alive)

    async def propose(self, command: Command, *, timeout_seconds: float) -> int:
        """The index of the command once it is applied here. Raises NotServing, Unreachable."""
        body = encode_command(command)
        return await self._joined_raft().propose(body, timeout_seconds=timeout_seconds)

    async def barrier(self, timeout_seconds: float) -> int:
        """The index up to which this node has applied the log, all that was committed before
        the call included. Raises NotServing, Unreachable."""
        return await self._joined_raft().barrier(timeout_seconds=timeout_seconds)

    async def add_voter(self, node_id: NodeId, *, timeout_seconds: float) -> None:
        await self._joined_raft().add_voter(node_id, timeout_seconds=timeout_seconds)

    async def remove_voter(self, node_id: NodeId, *, timeout_seconds: float) -> None:
        await self._joined_raft().remove_voter(node_id, timeout_seconds=timeout_seconds)

    async def hand_over(self) -> None:
        """If this node leads, let another one lead, without an election's pause."""
        if self._raft is not None and self._raft.is_leader and len(self._raft.voters) > 1:
            await self._raft.transfer_leadership()

    def _joined_raft(self) -> RaftNode:
        if self._raft is None:
            raise NotServing("this node has not joined a cluster yet", phase="discovery")
        return self._raft

    def _view(self) -> tuple[frozenset[NodeId], Mapping[NodeId, str]]:
        known = {node: str(address) for node, address in self._addresses.known().items()}
        return self.voters, {**known, self._me: str(self._config.node.advertise_address)}

    async def handle_whoami(self, caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self._whereabouts.note_caller(caller, body)
        self._strangers.note_caller(body)
        return self._founding.answer_whoami().to_map()

    async def handle_promise(self, caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._founding.answer_promise(caller, proposal_from_map(body)).to_map()

    async def accept(self, channel: ChannelLike) -> None:
        """A peer dialled a log channel."""
        if self._raft is None:
            channel.close()
            return
        await self._raft.accept(channel)
