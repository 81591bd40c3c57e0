"""Looks for a second cluster under this cluster's name, for as long as the node lives.

Now and then a few of the addresses that the source names are asked who they are, and the claim
in the registry, where there is one, is held against this node's cluster. Who asks says of which
cluster it is, and so does who dials for the log: the node that is met learns as much as the one
that looks. Two clusters never merge: both say so, and a person decides which one stays.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from butterfly.node.local import Local, Problem
from butterfly.node.whereabouts import WHERE_KEY
from butterfly_cluster.founding import AskPeers, Directory
from butterfly_cluster.founding_messages import WhoAmI
from butterfly_cluster.founding_questions import ask_all
from butterfly_core.address import parse_address
from butterfly_core.errors import ButterflyError, InvalidValue
from butterfly_core.ids import ClusterId, NodeId, parse_node_id, short

log = logging.getLogger(__name__)

TWO_CLUSTERS: Final = "two_clusters"
ROUND_SECONDS: Final = 10.0
"""Between two rounds; each node waits half as long to one and a half times as long."""
CLUSTER_KEY: Final = "cluster_id"
"""In the question "who are you?": the cluster of the asking node, or None."""
CALLER_KEPT_SECONDS: Final = 60.0
"""After it asked or answered last; it asks again within two rounds, if few are named to it."""
_ASKED_AT_ONCE_MAX: Final = 16
_CALLERS_MAX: Final = 16
_IN_THE_REGISTRY: Final = "the claim in Consul"


class Strangers:
    """``run`` until cancelled; ``note_caller`` for each question that comes in.

    ``keep_claim`` tells the registry of this cluster, and returns the cluster it names instead,
    if it names another one. ``refused``: of which cluster nodes are that were refused lately."""

    def __init__(
        self,
        cluster_name: str,
        *,
        cluster_id: Callable[[], ClusterId | None],
        peers: AskPeers,
        directory: Directory,
        local: Local,
        keep_claim: Callable[[], Awaitable[ClusterId | None]],
        refused: Callable[[], Mapping[NodeId, ClusterId]] = dict,
        rng: random.Random | None = None,
    ) -> None:
        self._cluster_name = cluster_name
        self._cluster_id = cluster_id
        self._peers = peers
        self._directory = directory
        self._local = local
        self._keep_claim = keep_claim
        self._refused = refused
        self._rng = rng or random.SystemRandom()
        self._found: dict[str, ClusterId] = {}
        self._callers: dict[str, float] = {}
        """Where nodes of other clusters are that asked, and when they last did or answered."""

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(ROUND_SECONDS * self._rng.uniform(0.5, 1.5))

    async def look(self) -> None:
        """Ask once, and report or solve the problem ``two_clusters``."""
        await self._ask_some()
        await self._look_at_the_claim()
        self._tell()

    def note_caller(self, body: Mapping[str, Any]) -> None:
        """Somebody who has the secret asked who this node is, and said of which cluster it is."""
        mine, told = self._cluster_id(), body.get(CLUSTER_KEY)
        if mine is None or told is None:
            return
        try:
            cluster_id = ClusterId(parse_node_id(str(told)))
            address = str(parse_address(str(body.get(WHERE_KEY))))
        except InvalidValue:
            return  # a version that does not say it
        if cluster_id == mine:
            self._forget(address)
        elif address in self._callers or len(self._callers) < _CALLERS_MAX:
            self._callers[address] = asyncio.get_running_loop().time()
            self._found[address] = cluster_id
        else:
            return
        self._tell()

    async def _ask_some(self) -> None:
        try:
            named = await self._directory.seeds()
            self._keep_only(named)
        except (ButterflyError, OSError):
            named = ()  # its source does not answer; /status says so
        some = self._rng.sample(named, min(len(named), _ASKED_AT_ONCE_MAX))
        self._drop_silent_callers()
        answers = await ask_all(self._peers, {*some, *self._callers})
        for address, heard in answers.items():
            if not isinstance(heard, WhoAmI):
                continue  # silence is no news, and neither is a node of another name or secret
            if heard.cluster_id is None or heard.cluster_id == self._cluster_id():
                self._forget(address)
                continue
            self._found[address] = heard.cluster_id
            if address in self._callers:
                self._callers[address] = asyncio.get_running_loop().time()

    def _keep_only(self, named: tuple[str, ...]) -> None:
        for address in self._found.keys() - {*named, *self._callers, _IN_THE_REGISTRY}:
            del self._found[address]

    def _drop_silent_callers(self) -> None:
        """Nobody names them, so nobody would take them back."""
        oldest = asyncio.get_running_loop().time() - CALLER_KEPT_SECONDS
        for address in [where for where, at in self._callers.items() if at < oldest]:
            self._forget(address)

    def _forget(self, address: str) -> None:
        self._callers.pop(address, None)
        self._found.pop(address, None)

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
        found = dict(self._found)
        found |= {f"node {short(node)}": cluster for node, cluster in self._refused().items()}
        if not found:
            self._local.solved(TWO_CLUSTERS)
            return
        others: dict[ClusterId, list[str]] = {}
        for where, cluster_id in sorted(found.items()):
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
