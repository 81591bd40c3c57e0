"""Tells the cluster what it does not know yet of this node, one command at a time."""

import asyncio
import logging
from typing import Final

from butterfly.node.consensus import Consensus
from butterfly.node.local import Local
from butterfly.node.replica import Replica
from butterfly_cluster.commands import Command, RemoveMember
from butterfly_cluster.node_duties import node_duty
from butterfly_core.errors import ButterflyError
from butterfly_core.ids import NodeId, short

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.5
_PROPOSE_SECONDS: Final = 3.0
_PAUSE_SECONDS: Final = 0.2
_LEAVE_SECONDS: Final = 3.0
_TAKE_OVER_SECONDS: Final = 1.0
_HAND_OVER_AGAIN_SECONDS: Final = 0.05
SAME_AGAIN_FIRST_SECONDS: Final = 0.5
SAME_AGAIN_MAX_SECONDS: Final = 5.0


async def tell_the_cluster(consensus: Consensus, replica: Replica, local: Local) -> None:
    """For ever: the first duty of ``node_duty`` is proposed; a lost proposal is made again.

    A command that was committed and changed nothing comes back at once; it waits longer and
    longer, so that a disagreement about the state does not fill the log.
    """
    committed: Command | None = None
    pause = SAME_AGAIN_FIRST_SECONDS
    while True:
        command = _duty(consensus, replica, local)
        if command is None:
            committed = None
            await local.changed.wait(_LOOK_SECONDS)
            continue
        if command != committed:
            pause = SAME_AGAIN_FIRST_SECONDS
        else:
            deadline = asyncio.get_running_loop().time() + pause
            if not await _stays(command, consensus, replica, local, deadline):
                continue
            log.warning("%s was committed and changed nothing; proposing it again", command.kind)
            pause = min(2 * pause, SAME_AGAIN_MAX_SECONDS)
        committed = command if await _propose(consensus, command) else None


def _duty(consensus: Consensus, replica: Replica, local: Local) -> Command | None:
    if local.draining or not consensus.joined:
        return None
    return node_duty(replica.state, local.facts)


async def _stays(
    command: Command, consensus: Consensus, replica: Replica, local: Local, deadline: float
) -> bool:
    """True when this is the duty until then, on the loop's clock; False as soon as it is not."""
    while _duty(consensus, replica, local) == command:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            return True
        await local.changed.wait(left)
    return False


async def _propose(consensus: Consensus, command: Command) -> bool:
    try:
        await consensus.propose(command, timeout_seconds=_PROPOSE_SECONDS)
    except ButterflyError as error:
        log.info("%s is not committed, will try again: %s", command.kind, error)
        await asyncio.sleep(_PAUSE_SECONDS)
        return False
    return True


async def leave_cluster(consensus: Consensus, replica: Replica, me: NodeId) -> None:
    """Propose to be removed; a cluster that cannot agree on it just loses the node."""
    if not consensus.joined or me not in replica.state.members:
        return
    if cost := _cost_of_leaving(consensus, replica, me):
        log.warning("%s", cost)
    await _let_another_lead(consensus, me)
    try:
        command = RemoveMember(me, "it was asked to leave")
        await consensus.propose(command, timeout_seconds=_LEAVE_SECONDS)
    except ButterflyError as error:
        log.warning("left without telling the cluster: %s", error)


def _cost_of_leaving(consensus: Consensus, replica: Replica, me: NodeId) -> str:
    """What the rest cannot do without this node; empty when it has a majority of its own."""
    voters = consensus.voters
    if me not in voters or not replica.state.members.keys() - {me}:
        return ""
    silent = {voter for voter in voters - {me} if _is_silent(consensus, voter)}
    if 2 * (len(voters) - 1 - len(silent)) > len(voters):
        return ""
    names = ", ".join(map(short, sorted(silent))) or "no other"
    return (
        f"the cluster loses its majority when this node leaves: of {len(voters)} voters, "
        f"{len(silent)} are silent ({names}). The rest commits nothing and admits nothing until "
        f"{len(voters) // 2 + 1} voters run again: start a silent one, or this node"
    )


def _is_silent(consensus: Consensus, voter: NodeId) -> bool:
    heard = consensus.seconds_since_heard(voter) <= consensus.timing.silent_seconds
    return not heard or voter in consensus.lost_peers


async def _let_another_lead(consensus: Consensus, me: NodeId) -> None:
    """While it still answers, so that the others need no election by timeout."""
    if consensus.leader != me or len(consensus.voters) == 1:
        return
    loop = asyncio.get_running_loop()
    until = loop.time() + _LEAVE_SECONDS
    reason = "the one that was asked did not take over"
    while loop.time() < until:
        try:
            await consensus.hand_over()
        except ButterflyError as error:
            reason = str(error)
        else:
            if await _is_led_by_another(consensus, me, _TAKE_OVER_SECONDS):
                return
        await asyncio.sleep(_HAND_OVER_AGAIN_SECONDS)
    log.warning("nobody takes over the lead, the others have to elect somebody: %s", reason)


async def _is_led_by_another(consensus: Consensus, me: NodeId, seconds: float) -> bool:
    """True as soon as it is so; False when it is not within the time."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        if consensus.leader not in (None, me):
            log.info("node %s leads now (term %d)", short(str(consensus.leader)), consensus.term)
            return True
        await asyncio.sleep(_HAND_OVER_AGAIN_SECONDS)
    return False
