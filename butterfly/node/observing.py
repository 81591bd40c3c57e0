"""What the coordinator sees beside the log: who is heard, who lost whom, since when it is calm."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from butterfly.node.consensus import Consensus
from butterfly.node.reports import Reports, report_period
from butterfly_cluster.catching_up import CatchingUp
from butterfly_cluster.liveness import witnesses_of
from butterfly_cluster.observations import Observations
from butterfly_cluster.state import ClusterState
from butterfly_core.address import Address
from butterfly_core.errors import Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.names import connect

Refuses = Callable[[Address], Awaitable[bool]]

PROBE_SECONDS: Final = 0.3
_PROBE_AGAIN_SECONDS: Final = 0.5
_PROBES_MAX: Final = 16
_OWN_PAUSE_SECONDS: Final = 1.0
_OWN_PULSE_SECONDS: Final = 0.2
_UNRELIABLE_AFTER_SECONDS: Final = 1.0


async def refuses(address: Address) -> bool:
    """True when the machine there says that nobody listens; False for an answer or silence."""
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            sock = await connect(address.host, address.port)
    except ConnectionRefusedError:
        return True
    except (TimeoutError, OSError, ValueError, Unreachable):  # the last two: of its name
        return False
    sock.close()
    return False


class Observer:
    """Looks on behalf of one coordinator; ``begin`` when it starts to lead."""

    def __init__(
        self,
        me: NodeId,
        *,
        consensus: Consensus,
        reports: Reports,
        clock: Callable[[], float],
        refuses: Refuses,
    ) -> None:
        self._me = me
        self._consensus = consensus
        self._reports = reports
        self._clock = clock
        self._refuses = refuses
        self._settled_since = 0.0
        self._signature: tuple[object, ...] = ()
        self._gathered: tuple[NodeId, ...] = ()
        self._gathered_since = 0.0
        self._silence_since = 0.0
        self._looked_at = clock()
        self._catching_up = CatchingUp(consensus.timing.append_seconds)
        self._broken_epoch = 0
        self._broken_since = 0.0
        self._ready_offer = 0
        self._ready_since = 0.0
        self._refused: dict[NodeId, tuple[float, bool]] = {}

    def begin(self) -> None:
        """From now on silence and calm are counted."""
        self._settled_since = self._gathered_since = self._silence_since = self._clock()

    async def watch_for_own_pauses(self) -> None:
        """For ever: while the coordinator waits for a plan or a commit, the process does not."""
        while True:
            self.notice_own_pause()
            await asyncio.sleep(_OWN_PULSE_SECONDS)

    def notice_own_pause(self) -> None:
        """After a pause of this process nobody else is to blame for the silence."""
        now = self._clock()
        if now - self._looked_at > _OWN_PAUSE_SECONDS:
            self._silence_since = now
        self._looked_at = now

    def look(self, state: ClusterState) -> Observations:
        """What is seen now."""
        now, consensus = self._clock(), self._consensus
        gathered = tuple(member.node_id for member in state.live)
        if gathered != self._gathered:
            self._gathered, self._gathered_since = gathered, now
        signature = tuple((member.node_id, member.engine) for member in state.live)
        if signature != self._signature:
            self._signature, self._settled_since = signature, now
        silent = self._silent_seconds(state, now)
        return Observations(
            mute=self._reports.mute,
            silent_seconds=silent,
            settled_seconds=now - self._settled_since,
            gathered_seconds=now - self._gathered_since,
            voters=consensus.voters,
            me=self._me,
            term=consensus.term,
            active_requests=self._reports.active_requests,
            requests_late_seconds=report_period(len(state.members)) + _UNRELIABLE_AFTER_SECONDS,
            offer_ready_seconds=self._offer_ready_seconds(state, now),
            broken_seconds=self._broken_seconds(state, now),
            caught_up=self._caught_up(state, now),
            witnesses=self._witnesses(state, silent),
            cut_off=consensus.lost_peers,
            refused=self._refusing(now),
        )

    async def probe(self, seen: Observations, state: ClusterState) -> bool:
        """Dial members whose channel broke and that others lost too; True when that told news."""
        now, before = self._clock(), self._refusing(self._clock())
        suspects = {
            member.node_id: member.address
            for member in state.live
            if member.node_id in seen.cut_off and seen.witnesses.get(member.node_id)
        }
        due = [
            node
            for node in sorted(suspects)
            if now - self._refused.get(node, (0.0, False))[0] > _PROBE_AGAIN_SECONDS
        ][:_PROBES_MAX]
        answers = await asyncio.gather(*(self._refuses(suspects[node]) for node in due))
        self._refused = {node: self._refused[node] for node in self._refused if node in suspects}
        self._refused |= {node: (now, answer) for node, answer in zip(due, answers, strict=True)}
        return self._refusing(self._clock()) != before

    def _refusing(self, now: float) -> frozenset[NodeId]:
        fresh = 2 * _PROBE_AGAIN_SECONDS + PROBE_SECONDS
        return frozenset(
            node for node, (at, answer) in self._refused.items() if answer and now - at <= fresh
        )

    def _silent_seconds(self, state: ClusterState, now: float) -> dict[NodeId, float]:
        """By report or in the log's channel, and nobody for longer than this node leads."""
        reported = self._reports.silent_seconds(self._silence_since)
        return {
            node: min(
                reported.get(node, now - self._silence_since),
                self._consensus.seconds_since_heard(node),
            )
            for node in {*state.members, *self._consensus.voters}
        }

    def _witnesses(
        self, state: ClusterState, silent: dict[NodeId, float]
    ) -> dict[NodeId, frozenset[NodeId]]:
        unreliable = {
            node
            for node, seconds in silent.items()
            if node != self._me and seconds > _UNRELIABLE_AFTER_SECONDS
        }
        return witnesses_of(state, self._reports.lost_by, frozenset(unreliable))

    def _caught_up(self, state: ClusterState, now: float) -> frozenset[NodeId]:
        consensus = self._consensus
        learners = {member.node_id for member in state.live} - consensus.voters
        matched = {node: consensus.matched_index(node) for node in learners}
        return self._catching_up.look(now, consensus.commit_index, matched)

    def _broken_seconds(self, state: ClusterState, now: float) -> float:
        if state.broken_epoch != self._broken_epoch:
            self._broken_epoch, self._broken_since = state.broken_epoch, now
        return now - self._broken_since

    def _offer_ready_seconds(self, state: ClusterState, now: float) -> float:
        offer = state.open_offer
        ready = offer.number if offer is not None and offer.is_ready else 0
        if ready != self._ready_offer:
            self._ready_offer, self._ready_since = ready, now
        return now - self._ready_since if ready else 0.0
