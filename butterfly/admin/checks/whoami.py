"""Calls a peer over the authenticated wire, as a node would, and asks who it is."""

import asyncio
import secrets
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from butterfly_core.address import Address
from butterfly_core.errors import ButterflyError
from butterfly_core.ids import node_id_from_bytes

if TYPE_CHECKING:
    from butterfly.config import NodeConfig

CALL_SECONDS_MAX = 5.0


def ask_who(config: "NodeConfig", peer: Address) -> str:
    """The peer's node id ("" when it does not tell). Raises Unreachable, NotAuthenticated,
    Refused, ConfigError: the wire's own errors, which say what to do."""
    answer = asyncio.run(introductions(config, [peer]))[peer]
    if isinstance(answer, ButterflyError):
        raise answer
    return str(answer.get("node_id") or "")


async def introductions(
    config: "NodeConfig", peers: Iterable[Address]
) -> dict[Address, Mapping[str, Any] | ButterflyError]:
    """What each says when asked who it is, or why it does not. Raises ConfigError."""
    from butterfly.security import asking_identity
    from butterfly_wire.pool import PeerPool

    tls = asking_identity(config, node_id_from_bytes(secrets.token_bytes(16)))
    pool = PeerPool(tls, cluster_name=config.cluster.cluster_name, node_id=tls.node_id)

    async def ask(peer: Address) -> Mapping[str, Any] | ButterflyError:
        try:
            return await pool.call(peer, "whoami", {}, timeout_seconds=CALL_SECONDS_MAX)
        except ButterflyError as error:
            return error

    try:
        async with asyncio.TaskGroup() as tasks:
            asked = {peer: tasks.create_task(ask(peer)) for peer in peers}
    finally:
        await pool.close()
    return {peer: task.result() for peer, task in asked.items()}
