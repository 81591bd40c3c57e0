"""Other nodes as consensus sees them, over the wire: questions on calls, the log on channels."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from butterfly.node.addresses import AddressBook
from butterfly.node.strangers import CLUSTER_KEY
from butterfly.node.whereabouts import WHERE_KEY
from butterfly_cluster.founding_messages import (
    Proposal,
    Verdict,
    WhoAmI,
    verdict_from_map,
    whoami_from_map,
)
from butterfly_core.address import Address, parse_address
from butterfly_core.ids import ClusterId, NodeId
from butterfly_wire.channel import Channel
from butterfly_wire.dialing import dial_channel
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.limits import WireLimits
from butterfly_wire.pool import PeerPool
from butterfly_wire.traffic import Traffic

RAFT_PURPOSE: Final = "raft"
_ASK_SECONDS: Final = 2.0


class WirePeers:
    """Asks at addresses, dials by id. Raises ButterflyError when a peer cannot be reached."""

    def __init__(
        self,
        me: NodeId,
        *,
        cluster_name: str,
        tls: TlsIdentity,
        pool: PeerPool,
        addresses: AddressBook,
        limits: WireLimits,
        here: Address,
        cluster_id: Callable[[], ClusterId | None],
        traffic: Traffic,
    ) -> None:
        """``here`` is where others reach this node; they are told of which cluster it is."""
        self._me = me
        self._cluster_name = cluster_name
        self._tls = tls
        self._pool = pool
        self._addresses = addresses
        self._limits = limits
        self._here = here
        self._cluster_id = cluster_id
        self._traffic = traffic

    async def whoami(self, address: str, /) -> WhoAmI:
        told = {WHERE_KEY: str(self._here), CLUSTER_KEY: self._cluster_id()}
        return whoami_from_map(await self._ask(address, "whoami", told))

    async def promise(self, address: str, proposal: Proposal, /, *, expect: NodeId) -> Verdict:
        return verdict_from_map(await self._ask(address, "promise", proposal.to_map(), expect))

    async def _ask(
        self, address: str, method: str, body: Mapping[str, Any], expect: NodeId | None = None
    ) -> Mapping[str, Any]:
        where = parse_address(address)
        return await self._pool.call(
            where, method, body, timeout_seconds=_ASK_SECONDS, expect=expect
        )

    async def dial(self, peer: NodeId, /, *, timeout_seconds: float) -> Channel:
        """A channel for the log to a peer whose address is known."""
        return await dial_channel(
            self._addresses.next_of(peer),
            RAFT_PURPOSE,
            self._tls,
            cluster_name=self._cluster_name,
            node_id=self._me,
            expect=peer,
            timeout_seconds=timeout_seconds,
            limits=self._limits,
            traffic=self._traffic,
        )
