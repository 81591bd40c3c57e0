"""Where this node looks for others: the configured source, watched for as long as it lives.

Founding asks it who is expected; later it tells of addresses that nobody named before. A
source that is down is a problem to show: a cluster that stands does not need it.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from butterfly.config import NodeConfig
from butterfly.node.local import Local, Problem
from butterfly.sources import claims_of, source_of
from butterfly_cluster.claims import Claims
from butterfly_core.address import Address
from butterfly_core.errors import Unreachable
from butterfly_core.ids import NodeId
from butterfly_discovery.consul_source import ConsulSource
from butterfly_discovery.multicast import MulticastSource
from butterfly_discovery.watching import Discovery

log = logging.getLogger(__name__)

DISCOVERY_PROBLEM: Final = "discovery"
_FIRST_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 5.0
_SHOWN_MAX: Final = 100


class NodeDiscovery:
    """The sources of one node; the ``Directory`` of its founding."""

    def __init__(self, config: NodeConfig, me: NodeId, local: Local) -> None:
        """Raises InvalidValue for a source that can never work as configured."""
        self._method = config.cluster.discovery_method
        self._local = local
        self._source = source_of(config, me)
        self._discovery = Discovery([self._source])
        self._claims = claims_of(config)

    @property
    def claims(self) -> Claims | None:
        return self._claims

    @property
    def addresses(self) -> frozenset[Address]:
        """Everything the source named last."""
        return self._discovery.book.addresses

    async def seeds(self) -> tuple[str, ...]:
        """The last answer, sorted. Raises Unreachable while there was none."""
        book = await self._discovery.first(_FIRST_SECONDS)
        if self._source.name not in book.answers:
            problem = self._discovery.problems.get(self._source.name)
            raise Unreachable(problem.message if problem else f"{self._method}: no answer yet")
        return tuple(sorted(map(str, book.addresses)))

    async def run(self) -> None:
        """Watch the source, and keep its problem up to date, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._discovery.run())
            tasks.create_task(self._tell())

    async def _tell(self) -> None:
        while True:
            problem = self.problem()
            if problem is None:
                self._local.solved(DISCOVERY_PROBLEM)
            else:
                if DISCOVERY_PROBLEM not in self._local.problems:
                    log.warning("%s", problem)
                self._local.report(Problem(DISCOVERY_PROBLEM, problem))
            await self._discovery.changed(_LOOK_SECONDS)

    def problem(self) -> str | None:
        """What is wrong with the source now, in a sentence."""
        found = self._discovery.problems.get(self._source.name)
        if found is not None:
            seconds = max(0.0, self._discovery.now - found.since)
            stands = (
                f"its last answer ({len(self.addresses)} addresses) stands and a cluster that "
                "was founded goes on"
                if self._source.name in self._discovery.book.answers
                else "no answer yet; a new node cannot find the others"
            )
            return f"{self._method} has not answered for {seconds:.0f} s: {found.message}; {stands}"
        if isinstance(self._source, ConsulSource | MulticastSource):
            return self._source.problem
        return None

    def view(self) -> Mapping[str, Any]:
        """For ``/status``."""
        ago = self._discovery.answered_seconds_ago
        return {
            "method": self._method,
            "addresses": [str(address) for address in sorted(self.addresses)[:_SHOWN_MAX]],
            "problem": self.problem(),
            "answered_seconds_ago": None if ago is None else round(ago, 1),
        }
