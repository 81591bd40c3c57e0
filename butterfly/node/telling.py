"""Tells the cluster what it does not know yet of this node, one command at a time."""

import asyncio
import logging
from typing import Final

from butterfly.node.consensus import Consensus
from butterfly.node.local import Local
from butterfly.node.replica import Replica
from butterfly_cluster.commands import RemoveMember
from butterfly_cluster.node_duties import node_duty
from butterfly_core.errors import ButterflyError
from butterfly_core.ids import NodeId

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.5
_PROPOSE_SECONDS: Final = 3.0
_PAUSE_SECONDS: Final = 0.2
_LEAVE_SECONDS: Final = 3.0


async def tell_the_cluster(consensus: Consensus, replica: Replica, local: Local) -> None:
    """For ever: the first duty of ``node_duty`` is proposed; a lost proposal is made again."""
    while True:
        command = None if local.draining else node_duty(replica.state, local.facts)
        if command is None or not consensus.joined:
            await local.changed.wait(_LOOK_SECONDS)
            continue
        try:
            await consensus.propose(command, timeout_seconds=_PROPOSE_SECONDS)
        except ButterflyError as error:
            log.info("%s is not committed, will try again: %s", command.kind, error)
            await asyncio.sleep(_PAUSE_SECONDS)


async def leave_cluster(consensus: Consensus, replica: Replica, me: NodeId) -> None:
    """Propose to be removed; a cluster that cannot agree on it just loses the node."""
    if not consensus.joined or me not in replica.state.members:
        return
    try:
        await consensus.hand_over()
        command = RemoveMember(me, "it was asked to leave")
        await consensus.propose(command, timeout_seconds=_LEAVE_SECONDS)
    except ButterflyError as error:
        log.warning("left without telling the cluster: %s", error)
