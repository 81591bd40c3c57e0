"""What members tell their coordinator several times a second, beside the log.

A report is a sign of life and carries what only people and the planner need: progress, phase,
requests under way. The coordinator answers with everybody's newest report, so any node can
show the whole cluster.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from butterfly.node.addresses import AddressBook
from butterfly.node.local import Local
from butterfly_cluster.state import ClusterState
from butterfly_core.errors import ButterflyError
from butterfly_core.ids import NodeId
from butterfly_wire.pool import PeerPool

REPORT_SECONDS: Final = 0.3
_TIMEOUT_SECONDS: Final = 1.5
_REPORTS_MAX: Final = 1000


class Reports:
    """Sends this node's reports, keeps the others'."""

    def __init__(
        self,
        me: NodeId,
        local: Local,
        *,
        pool: PeerPool,
        addresses: AddressBook,
        leader: Callable[[], NodeId | None],
        active_requests: Callable[[], int],
        state: Callable[[], ClusterState],
    ) -> None:
        self._me = me
        self._local = local
        self._pool = pool
        self._addresses = addresses
        self._leader = leader
        self._active_requests = active_requests
        self._state = state
        self._heard: dict[NodeId, float] = {}
        self.newest: dict[NodeId, Mapping[str, Any]] = {}

    def own(self) -> Mapping[str, Any]:
        local, progress = self._local, self._local.progress
        return {
            "state": local.node.state.value,
            "phase": local.phase.value,
            "epoch": local.node.epoch,
            "progress_percent": local.progress_percent,
            "bytes_done": progress.bytes_done if progress else 0,
            "bytes_total": progress.bytes_total if progress else 0,
            "bytes_from_source": local.bytes_from_source,
            "bytes_from_cache": local.bytes_from_cache,
            "active_requests": self._active_requests(),
            "problems": [problem.message for problem in local.problems.values()][:8],
        }

    async def run(self) -> None:
        """Report for ever."""
        while True:
            await self._report_once()
            await asyncio.sleep(REPORT_SECONDS)

    async def _report_once(self) -> None:
        leader, own = self._leader(), self.own()
        self.newest[self._me] = own
        if leader is None or leader == self._me:
            return
        try:
            address = self._addresses.of(leader)
            reply = await self._pool.call(
                address, "report", own, timeout_seconds=_TIMEOUT_SECONDS, expect=leader
            )
        except ButterflyError:
            return  # the next one may get through; silence is what the coordinator counts
        others = reply.get("reports", {})
        self.newest = {**{NodeId(key): value for key, value in others.items()}, self._me: own}

    async def handle(self, caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A member's report; answers with all that were heard of lately."""
        known = self._state().members
        if caller in known or len(self.newest) < _REPORTS_MAX:
            self._heard[caller] = time.monotonic()
            self.newest[caller] = dict(body)
        for gone in [node for node in self.newest if node not in known and node != caller]:
            if gone != self._me:
                del self.newest[gone]
        return {"reports": {**self.newest, self._me: self.own()}}

    def silent_seconds(self, since: float) -> dict[NodeId, float]:
        """For how long each member was not heard; nobody for longer than since ``since``."""
        now = time.monotonic()
        return {
            node: now - max(self._heard.get(node, 0.0), since) for node in self._state().members
        }

    @property
    def active_requests(self) -> int:
        """Requests under way anywhere, as last reported."""
        others = (
            int(report.get("active_requests", 0))
            for node, report in self.newest.items()
            if node != self._me
        )
        return self._active_requests() + sum(others)
