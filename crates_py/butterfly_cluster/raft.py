"""One node's part in the log that the cluster agrees on.

``RaftNode`` puts the pieces together: pysyncobj (``raft_core``) behind its guard (``guard``)
on channels (``raft_transport``) and a journal (``journal``), driven by one asyncio task that
ticks every 20 ms and after each message.
"""

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path

from butterfly_cluster.guard import Guard
from butterfly_cluster.membership import VoterChange
from butterfly_cluster.raft_codec import Message
from butterfly_cluster.raft_core import Core
from butterfly_cluster.raft_doors import Adopt, Callbacks
from butterfly_cluster.raft_proposals import Proposals
from butterfly_cluster.raft_timing import LAN, TICK_SECONDS, WAN, Timing
from butterfly_cluster.raft_transport import (
    PAUSE_SECONDS_MAX,
    ChannelLike,
    Dial,
    RaftTransport,
)
from butterfly_cluster.raft_view import RaftView
from butterfly_cluster.snapshot import open_log, save_snapshot
from butterfly_cluster.steady_clock import steady_seconds
from butterfly_core.errors import ProtocolViolation, StorageError, Unreachable
from butterfly_core.ids import NodeId

__all__ = ["LAN", "WAN", "ChannelLike", "Dial", "RaftNode", "Timing"]

_CONFUSED_TICKS_MAX = 50
_STRANGERS_MAX = 8
_SLIPS = (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError)
_log = logging.getLogger(__name__)


class RaftNode(RaftView):
    """Proposes, commits and applies commands together with the other nodes.

    ``voters`` is the first configuration of the cluster, the same on every node and at every
    start; changes since then come out of the log. A node that is not among them, or that is
    told ``learner``, receives the log and votes only once the log makes it a voter.

    ``apply(index, body)`` gets every committed command body in order, once per run from the
    snapshot on. ``snapshot()`` returns the state that ``apply`` built; ``restore(state)`` reads
    such a state (InvalidValue when it cannot) and returns what then puts it in place. They are
    called from the event loop and must be quick.

    ``cluster_id`` is compared on every channel. ``clock`` counts seconds, steadily,
    also while the machine is suspended.
    """

    def __init__(
        self,
        *,
        me: NodeId,
        voters: frozenset[NodeId],
        data_dir: Path,
        timing: Timing,
        dial: Dial,
        apply: Callable[[int, bytes], None],
        snapshot: Callable[[], bytes],
        restore: Callable[[bytes], Adopt],
        learner: bool = False,
        cluster_id: str = "",
        clock: Callable[[], float] = steady_seconds,
        rng: random.Random | None = None,
        compact_after_entries: int = 5000,
        sync_file: Callable[[int], None] = os.fdatasync,
    ) -> None:
        """Open the log. Raises StorageError (damaged, full, of another version)."""
        chance = rng or random.SystemRandom()
        self._me, self._clock, self._timing = me, clock, timing
        self._wake = asyncio.Event()
        self._introduced: frozenset[NodeId] = frozenset()
        self._rumoured: frozenset[NodeId] = frozenset()
        self._slips = self._slips_in_a_row = 0
        self._ended = False
        self._transport = RaftTransport(
            me,
            cluster_id=cluster_id,
            dial=dial,
            timing=timing,
            receiver=self,
            chance=chance.random,
            clock=clock,
            longest_pause_seconds=self._longest_pause_seconds,
        )
        self._guard = Guard(timing, send=self._transport.send, clock=clock, chance=chance.random)
        self._journal, saved = open_log(data_dir, sync_file)
        try:
            self._core = self._guard.core = Core(
                me=me,
                founders=voters - {me} if learner else voters,
                timing=timing,
                journal=self._journal,
                snapshot=saved,
                save_snapshot=lambda data: save_snapshot(data_dir, data, sync_file),
                application=Callbacks(apply, snapshot, restore),
                send=self._guard.send,
                clock=clock,
                chance=chance,
                compact_after_entries=compact_after_entries,
            )
        except BaseException:
            self._journal.close()
            raise
        self._proposals = Proposals(self._core, self._wake.set, self._check)

    # What it does.

    async def run(self) -> None:
        """Take part until cancelled; a disk that fails makes it mute (``disk_problem``)."""
        try:
            async with asyncio.TaskGroup() as tasks:
                dialing = self._transport.run(self._whom_to_dial, self._is_useful)
                tasks.create_task(dialing, name="raft dial")
                tasks.create_task(self._transport.ping(lambda: self.leader), name="raft ping")
                await self._tick_for_ever()
        finally:
            self.close()

    async def accept(self, channel: ChannelLike) -> None:
        """Serve a channel that a peer dialled; returns when it ends."""
        if self._ended:
            channel.close()
            return
        await self._transport.serve(channel)

    async def propose(self, command: bytes, *, timeout_seconds: float) -> int:
        """Return the index of the command once it is committed and applied on this node.

        Works on every node: a follower forwards to the leader. Raises InvalidValue (not JSON,
        too big), NotServing (not handed in) and Unreachable (outcome unknown, propose again).
        """
        return await self._proposals.propose(command, timeout_seconds)

    async def barrier(self, *, timeout_seconds: float) -> int:
        """Return the index of a fresh no-op once it is applied here: a linearizable read point.

        Works on every node (Raft thesis 6.4, by the log). Raises NotServing, Unreachable.
        """
        return await self._proposals.barrier(timeout_seconds)

    async def add_voter(self, node: NodeId, *, timeout_seconds: float) -> None:
        """Make a learner a voter; on the leader only. Raises NotServing, Refused, Unreachable."""
        await self._proposals.change_voters(VoterChange("add", node), timeout_seconds)

    async def remove_voter(self, node: NodeId, *, timeout_seconds: float) -> None:
        """Make a voter a learner; on the leader only. Raises NotServing, Refused, Unreachable."""
        await self._proposals.change_voters(VoterChange("rem", node), timeout_seconds)

    async def transfer_leadership(self) -> None:
        """On the leader: ask the voter that is caught up best to take over. Raises Refused."""
        self._core.transfer_leadership(self._proposals.must_be_granted)
        self._wake.set()

    def introduce(self, nodes: frozenset[NodeId]) -> None:
        """Name the members; and, while no leader is heard, all others that may know one."""
        self._introduced = nodes - {self._me}

    def dial_anew(self, node: NodeId) -> None:
        """The node may be reached elsewhere now: do not wait for its next turn."""
        self._transport.dial_anew(node)

    def compact_soon(self) -> None:
        """Make a snapshot and cut the log at the next tick."""
        self._core.compact_soon()
        self._wake.set()

    def close(self) -> None:
        """Let go of channels and files; ``run`` does it by itself."""
        self._ended = True
        self._transport.close()
        self._journal.close()

    # What the transport tells it.

    def connected(self, peer: NodeId) -> None:
        """A channel to the peer is ready."""
        self._core.connected(peer)
        self._wake.set()

    def disconnected(self, peer: NodeId) -> None:
        """The channel to the peer is gone."""
        self._guard.disconnected(peer)
        self._wake.set()

    def heard_of_leader(self, leader: NodeId) -> None:
        """A peer says who leads."""
        self._rumoured = frozenset({leader})

    def received(self, peer: NodeId, message: Message) -> None:
        """Handle a checked message. Raises ProtocolViolation."""
        if self._ended:
            raise Unreachable("this node has ended")
        try:
            self._guard.receive(peer, message)
        except StorageError as error:
            self._guard.fall_mute(error)
        except _SLIPS as error:
            self._slips += 1
            _log.exception("a %s message from %s confused this node", message["type"], peer)
            raise ProtocolViolation(f"{message['type']}: {error!r}") from error
        finally:
            self._wake.set()

    async def _tick_for_ever(self) -> None:
        while True:
            self._wake.clear()
            self._tick()
            if self._journal.dirty:
                await asyncio.sleep(0)  # what this tick wrote wants its sync
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_SECONDS):
                        await self._wake.wait()

    def _tick(self) -> None:
        try:
            self._guard.tick()
            self._slips_in_a_row = 0
        except StorageError as error:
            self._guard.fall_mute(error)
        except _SLIPS:
            self._slips += 1
            self._slips_in_a_row += 1
            if self._slips_in_a_row > _CONFUSED_TICKS_MAX:
                raise
            _log.exception("a tick failed; the next one tries again")

    def _check(self) -> None:
        if self._ended:
            raise Unreachable("this node has left the cluster's log; it was stopped")

    def _whom_to_dial(self) -> frozenset[NodeId]:
        core, lonely = self._core, self._is_lonely
        strangers = self._some_introduced() if lonely or self.is_leader else frozenset()
        if core.is_voter and not lonely:  # learners cannot find a leader that moved: it dials them
            mine = frozenset(peer for peer in core.others if self._me > peer)
            return mine | strangers - core.others - {self._me}
        return (core.others | self._rumoured | strangers) - {self._me}

    def _is_useful(self, peer: NodeId) -> bool:
        """A learner that hears its leader needs no other learner to ask who leads."""
        if self._core.is_voter or self._is_lonely:
            return True
        return peer in self._core.others | self._rumoured or peer == self.leader

    @property
    def _is_lonely(self) -> bool:
        return self.seconds_since_leader_heard > 3 * self._timing.election_max_seconds

    def _longest_pause_seconds(self) -> float:
        """Without a leader every moment counts: the others may be there again."""
        return self._timing.connect_seconds if self._is_lonely else PAUSE_SECONDS_MAX

    def _some_introduced(self) -> frozenset[NodeId]:
        """A few of them, and others a second later: in a big cluster they are many."""
        names = sorted(self._introduced)
        turn = int(self._clock() / self._timing.connect_seconds)
        start = turn * _STRANGERS_MAX % max(1, len(names))
        return frozenset((names + names)[start : start + _STRANGERS_MAX])
