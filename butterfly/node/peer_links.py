"""Joins this node's engine to other nodes' engines, so that weights can come from them.

When a load could use what others hold, its engine says so; this node then asks some members for
one-time tickets over the authenticated control connections, dials with them and hands the sockets
to its engine. No weight passes through this process.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any, Final

from butterfly.node.addresses import AddressBook
from butterfly.node.data_tickets import check_mode, issue_ticket, open_data
from butterfly.node.engine import Engine
from butterfly.peer_messages import PeerLink, PeersOpened
from butterfly_cluster.state import ClusterState
from butterfly_core.errors import ButterflyError, EngineLost, Refused
from butterfly_core.ids import NodeId, short
from butterfly_core.layers import LayerRange
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from butterfly_wire.tickets import DataTicket, Mode

log = logging.getLogger(__name__)

LINKS_MAX: Final = 16
_CALL_SECONDS: Final = 1.5
_WAITING_MAX: Final = 64


def peers_to_ask(state: ClusterState, me: NodeId, links_max: int = LINKS_MAX) -> list[NodeId]:
    """Who may hold weights that this node needs: first who is to carry the same parts, then
    anybody, in an order of this node's own, so that not all ask the same few."""
    live = [m.node_id for m in state.live if m.node_id != me and m.carries_layers]
    mine = _parts_of(state, me)

    def rank(peer: NodeId) -> tuple[bool, bytes]:
        return not mine & _parts_of(state, peer), sha256(f"{me} {peer}".encode()).digest()

    return sorted(live, key=rank)[:links_max]


def _parts_of(state: ClusterState, node: NodeId) -> frozenset[str]:
    stage = state.assignment.stage_of(node) if state.assignment else None
    if stage is None or state.model is None:
        return frozenset()
    layers = LayerRange(stage.layers.start, stage.layers.stop)
    return frozenset(state.model.parts_of(layers))


class PeerLinks:
    """Opens links when the engine wants them, and answers for those that others open."""

    def __init__(
        self,
        me: NodeId,
        *,
        enabled: bool,
        mode: Mode,
        listener: PeerListener,
        pool: PeerPool,
        addresses: AddressBook,
        engine: Engine,
        state: Callable[[], ClusterState],
    ) -> None:
        self._me, self._enabled, self._mode = me, enabled, mode
        self._listener, self._pool, self._addresses = listener, pool, addresses
        self._engine, self._state = engine, state
        self._wanted: asyncio.Queue[int] = asyncio.Queue(maxsize=1)
        self._arrived: asyncio.Queue[tuple[PeerLink, socket.socket]] = asyncio.Queue(_WAITING_MAX)

    def want(self, turn: int) -> None:
        """The engine asks for links; only its newest wish counts."""
        if self._wanted.full():
            self._wanted.get_nowait()
        self._wanted.put_nowait(turn)

    async def run(self) -> None:
        """Open what is wanted and hand over what has arrived, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._open_wanted())
            tasks.create_task(self._hand_over_arrived())

    async def _open_wanted(self) -> None:
        while True:
            turn = await self._wanted.get()
            peers = peers_to_ask(self._state(), self._me) if self._enabled else []
            async with asyncio.TaskGroup() as tasks:
                for peer in peers:
                    tasks.create_task(self._open(peer, turn))
            await self._tell(PeersOpened(turn))

    async def _open(self, peer: NodeId, turn: int) -> None:
        """One link; a peer that cannot or will not is left out."""
        try:
            ticket, connected = await open_data(
                peer,
                "open_peer_link",
                {"mode": self._mode},
                pool=self._pool,
                addresses=self._addresses,
                timeout_seconds=_CALL_SECONDS,
            )
        except ButterflyError as error:
            log.info("node %s is not asked for weights: %s", short(peer), error)
            return
        keys = ticket.dialer_keys
        await self._tell(PeerLink(peer, "out", *keys, ticket.mode, turn), connected)

    async def handle_open(self, caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A member wants to ask this node's engine for weights: a ticket."""
        if not self._enabled:
            raise Refused("[model] peers is off at this node")
        if caller not in self._state().members:
            raise Refused(f"node {short(caller)} is no member of this cluster")
        check_mode(self._mode, body, caller)
        return self._issue(caller).to_map()

    def _issue(self, caller: NodeId) -> DataTicket:
        def link_of(ticket: DataTicket) -> PeerLink:
            return PeerLink(caller, "in", *ticket.acceptor_keys, ticket.mode)

        return issue_ticket(self._listener, self._mode, self._arrived, link_of)

    async def _hand_over_arrived(self) -> None:
        while True:
            await self._tell(*await self._arrived.get())

    async def _tell(
        self, message: PeerLink | PeersOpened, connected: socket.socket | None = None
    ) -> None:
        try:
            await self._engine.send(message, connected)
        except EngineLost as error:
            log.info("the engine is not told of its peers: %s", error)
