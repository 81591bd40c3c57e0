"""Joins this node's engine to its neighbours in the pipeline.

Every stage sends to the next one, and the last one sends the tokens to the head: a ring. The
sender dials. It asks the next node for a one-time ticket over the authenticated control
connection, opens a data connection with it and hands the socket to its own engine; the next
node hands the other end to its engine. No tensor passes through this process.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from butterfly.channel import Link
from butterfly.node.addresses import AddressBook
from butterfly.node.data_tickets import check_mode, issue_ticket, open_data
from butterfly.node.engine import Engine
from butterfly_cluster.state import Assignment, ClusterState
from butterfly_core.errors import ButterflyError, EngineLost, Refused
from butterfly_core.ids import NodeId, short
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from butterfly_wire.tickets import DataTicket, Mode

log = logging.getLogger(__name__)

_CALL_SECONDS: Final = 3.0
_RETRY_SECONDS: Final = 0.1
LINK_SECONDS: Final = 15.0


class Links:
    """Opens the out-going link of this node's stage, and answers for the in-coming one."""

    def __init__(
        self,
        me: NodeId,
        *,
        mode: Mode,
        listener: PeerListener,
        pool: PeerPool,
        addresses: AddressBook,
        engine: Engine,
        epoch: Callable[[], int],
        state: Callable[[], ClusterState],
    ) -> None:
        self._me = me
        self._mode = mode
        self._listener = listener
        self._pool = pool
        self._addresses = addresses
        self._engine = engine
        self._epoch = epoch
        self._state = state
        self._arrived: asyncio.Queue[tuple[Link, socket.socket]] = asyncio.Queue(maxsize=64)

    async def connect(self, assignment: Assignment) -> None:
        """Open this stage's out-going link. Raises the last error after LINK_SECONDS."""
        following = _following(assignment, self._me)
        if following is None:
            return
        deadline = asyncio.get_running_loop().time() + LINK_SECONDS
        while True:
            try:
                await self._open(following, assignment.epoch)
            except ButterflyError as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                log.info("no link to node %s yet: %s", short(following), error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _open(self, following: NodeId, epoch: int) -> None:
        ticket, connected = await open_data(
            following,
            "open_link",
            {"epoch": epoch, "mode": self._mode},
            pool=self._pool,
            addresses=self._addresses,
            timeout_seconds=_CALL_SECONDS,
        )
        link = Link(epoch, "out", *ticket.dialer_keys, ticket.mode)
        await self._engine.send(link, connected)

    async def handle_open(self, caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The stage before this one asks for a ticket."""
        epoch, assignment = body.get("epoch"), self._state().assignment
        if assignment is None or epoch != assignment.epoch or epoch != self._epoch():
            raise Refused(f"this node is in epoch {self._epoch()}, not in {epoch}")
        if _following(assignment, caller) != self._me:
            raise Refused(f"node {short(caller)} is not the stage before this one")
        check_mode(self._mode, body, caller)
        return self._issue(assignment.epoch).to_map()

    def _issue(self, epoch: int) -> DataTicket:
        def link_of(ticket: DataTicket) -> Link:
            return Link(epoch, "in", *ticket.acceptor_keys, ticket.mode)

        return issue_ticket(self._listener, self._mode, self._arrived, link_of)

    async def run(self) -> None:
        """Hand arrived data connections to the engine, for ever."""
        while True:
            link, connected = await self._arrived.get()
            try:
                await self._engine.send(link, connected)
            except EngineLost as error:
                log.warning("a data connection arrived and is dropped: %s", error)


def _following(assignment: Assignment, node_id: NodeId) -> NodeId | None:
    """The node after this one in the ring; None alone, or outside the pipeline."""
    ring = [stage.node_id for stage in assignment.stages]
    if len(ring) < 2 or node_id not in ring:
        return None
    return ring[(ring.index(node_id) + 1) % len(ring)]
