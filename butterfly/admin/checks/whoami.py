"""Calls a peer over the authenticated wire, as a node would, and asks who it is."""

import asyncio
import secrets
from typing import TYPE_CHECKING

from butterfly_core.address import Address
from butterfly_core.ids import node_id_from_bytes

if TYPE_CHECKING:
    from butterfly.config import NodeConfig

CALL_SECONDS_MAX = 5.0


def ask_who(config: "NodeConfig", peer: Address) -> str:
    """The peer's node id ("" when it does not tell). Raises Unreachable, NotAuthenticated,
    Refused, ConfigError: the wire's own errors, which say what to do."""
    return asyncio.run(_ask(config, peer))


async def _ask(config: "NodeConfig", peer: Address) -> str:
    from butterfly.security import asking_identity
    from butterfly_wire.pool import PeerPool

    tls = asking_identity(config, node_id_from_bytes(secrets.token_bytes(16)))
    pool = PeerPool(tls, cluster_name=config.cluster.cluster_name, node_id=tls.node_id)
    try:
        answer = await pool.call(peer, "whoami", {}, timeout_seconds=CALL_SECONDS_MAX)
    finally:
        await pool.close()
    return str(answer.get("node_id") or "")
