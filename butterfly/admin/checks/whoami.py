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
    from butterfly_wire.identity import TlsIdentity
    from butterfly_wire.pool import PeerPool
    from butterfly_wire.secret import insecure_secret, load_secret

    path = config.security.cluster_secret_file
    name = config.cluster.cluster_name
    secret = load_secret(path) if path else insecure_secret(name)
    me = node_id_from_bytes(secrets.token_bytes(16))
    pool = PeerPool(TlsIdentity(secret, me), cluster_name=name, node_id=me)
    try:
        answer = await pool.call(peer, "whoami", {}, timeout_seconds=CALL_SECONDS_MAX)
    finally:
        await pool.close()
    return str(answer.get("node_id") or "")
