"""Looks for a second cluster under this cluster's name, for as long as the node lives.

Now and then a few of the addresses that the source names are asked who they are, and the claim
in the registry, where there is one, is held against this node's cluster. Two clusters never
merge: both say so, and a person decides which one stays.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from butterfly.node.local import Local, Problem
from butterfly_cluster.founding import AskPeers, Directory
from butterfly_cluster.founding_messages import WhoAmI
from butterfly_cluster.founding_questions import ask_all
from butterfly_core.errors import ButterflyError
from butterfly_core.ids import ClusterId

log = logging.getLogger(__name__)

TWO_CLUSTERS: Final = "two_clusters"
ROUND_SECONDS: Final = 10.0
"""Between two rounds; each node waits half as long to one and a half times as long."""
_ASKED_AT_ONCE_MAX: Final = 16
_IN_THE_REGISTRY: Final = "the claim in Consul"


class Strangers:
    """``run`` until cancelled. ``keep_claim`` tells the registry of this cluster, and returns
    the cluster it names instead, if it names another one."""

    def __init__(
        self,
        cluster_name: str,
        *,
        cluster_id: Callable[[], ClusterId | None],
        peers: AskPeers,
        directory: Directory,
        local: Local,
        keep_claim: Callable[[], Awaitable[ClusterId | None]],
        rng: random.Random | None = None,
    ) -> None:
        self._cluster_name = cluster_name
        self._cluster_id = cluster_id
        self._peers = peers
        self._directory = directory
        self._local = local
        self._keep_claim = keep_claim
        self._rng = rng or random.SystemRandom()
        self._found: dict[str, ClusterId] = {}

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(ROUND_SECONDS * self._rng.uniform(0.5, 1.5))

    async def look(self) -> None:
        """Ask once, and report or solve the problem ``two_clusters``."""
        await self._ask_some()
        await self._look_at_the_claim()
        self._tell()

    async def _ask_some(self) -> None:
        try:
            named = await self._directory.seeds()
        except (ButterflyError, OSError):
            return  # its source has not answered yet; /status says so
        some = self._rng.sample(named, min(len(named), _ASKED_AT_ONCE_MAX))
        answers = await ask_all(self._peers, set(some))
        for address, heard in answers.items():
            if not isinstance(heard, WhoAmI):
                continue  # silence is no news, and neither is a node of another name or secret
            if heard.cluster_id in (None, self._cluster_id()):
                self._found.pop(address, None)
            else:
                self._found[address] = heard.cluster_id
        for address in self._found.keys() - {*named, _IN_THE_REGISTRY}:
            del self._found[address]

    async def _look_at_the_claim(self) -> None:
        try:
            other = await self._keep_claim()
        except (ButterflyError, OSError) as error:
            log.debug("the claim was not seen to: %s", error)
            return  # the source's own problem is shown; a cluster that stands needs no claim
        if other is None:
            self._found.pop(_IN_THE_REGISTRY, None)
        else:
            self._found[_IN_THE_REGISTRY] = other

    def _tell(self) -> None:
        if not self._found:
            self._local.solved(TWO_CLUSTERS)
            return
        others: dict[ClusterId, list[str]] = {}
        for where, cluster_id in sorted(self._found.items()):
            others.setdefault(cluster_id, []).append(where)
        named = "; ".join(f"{cluster} (at {', '.join(at)})" for cluster, at in others.items())
        message = (
            f"there are {len(others) + 1} clusters under the name {self._cluster_name!r}: this "
            f"node's is {self._cluster_id()}, and there is {named}. They never merge. Decide "
            "which one stays; stop the nodes of the other one, and start each with: "
            "butterfly-node --config FILE --forget"
        )
        if self._local.report(Problem(TWO_CLUSTERS, message)):
            log.error("%s", message)
