"""Keeps addresses right when nodes move: who is lost asks around, who leads asks for the missed.

A question tells who asks and from where, so both sides learn. Nodes that joined through one
founder know only that founder, and the leader may be another one; a node may have moved while
this one was away; and a leader that moved is looked for at its old address.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from itertools import islice
from typing import Any, Final

from butterfly.node.addresses import AddressBook
from butterfly_cluster.founding_messages import WhoAmI
from butterfly_cluster.founding_questions import AskPeers, ask_all
from butterfly_core.address import parse_address
from butterfly_core.errors import ButterflyError, InvalidValue
from butterfly_core.ids import ClusterId, NodeId

ROUND_SECONDS: Final = 0.5
LONG_ROUND_SECONDS: Final = 5.0
_ASKED_MAX: Final = 64
WHERE_KEY: Final = "address"
"""In the question "who are you?": where the asking node is reached."""


class Whereabouts:
    """``run`` until cancelled; ``note_caller`` for each question that comes in."""

    def __init__(
        self,
        me: NodeId,
        *,
        peers: AskPeers,
        addresses: AddressBook,
        seeds: Callable[[], Awaitable[tuple[str, ...]]],
        cluster_id: Callable[[], ClusterId | None],
    ) -> None:
        """``seeds`` raises ButterflyError or OSError while the source does not answer."""
        self._me = me
        self._peers = peers
        self._addresses = addresses
        self._seeds = seeds
        self._cluster_id = cluster_id

    async def run(
        self, is_lost: Callable[[], bool], missed: Callable[[], frozenset[NodeId]]
    ) -> None:
        """``is_lost``: no leader is heard; ``missed``: members that this leader does not hear."""
        loop = asyncio.get_running_loop()
        long_round_at = loop.time()
        while True:
            is_long = loop.time() >= long_round_at
            wanted = missed() if is_long else frozenset()
            if is_lost():
                await self._ask(await self._known_seeds())
                wanted = frozenset(self._addresses.known()) if is_long else frozenset()
            await self._ask(self._where(wanted))
            if is_long:
                long_round_at = loop.time() + LONG_ROUND_SECONDS
            await asyncio.sleep(ROUND_SECONDS)

    def note_caller(self, caller: NodeId, body: Mapping[str, Any]) -> None:
        """Learn where a node is that this one knows already."""
        told = body.get(WHERE_KEY)
        if caller == self._me or caller not in self._addresses.known():
            return
        try:
            self._addresses.meet(caller, parse_address(str(told)))
        except InvalidValue:
            return  # a version that does not say it

    async def _known_seeds(self) -> tuple[str, ...]:
        try:
            return await self._seeds()
        except (ButterflyError, OSError):
            return ()  # its source has not answered yet; /status says so

    def _where(self, nodes: frozenset[NodeId]) -> tuple[str, ...]:
        known = self._addresses.known()
        asked = islice((node for node in sorted(nodes) if node in known), _ASKED_MAX)
        return tuple(str(known[node]) for node in asked)

    async def _ask(self, addresses: tuple[str, ...]) -> None:
        answers = await ask_all(self._peers, set(addresses))
        for address, heard in answers.items():
            if isinstance(heard, WhoAmI) and heard.cluster_id == self._cluster_id():
                self._learn(address, heard)

    def _learn(self, address: str, heard: WhoAmI) -> None:
        if heard.node_id == self._me:
            return
        self._addresses.meet(heard.node_id, parse_address(address))
        known = (self._me, heard.node_id)
        said = {node: where for node, where in heard.members.items() if node not in known}
        self._addresses.learn_all(said)
