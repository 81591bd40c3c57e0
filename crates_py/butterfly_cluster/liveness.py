"""Who is dead, from what the coordinator hears itself and from what others saw. Pure.

One slow heartbeat proves nothing, and one broken connection may be anybody's fault. So silence
counts by how many agree on it: the coordinator, the nodes that lost the same peer (witnesses),
and the peer's own machine when it says that nobody listens there any more. Whoever is judged
dead by mistake registers again.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from butterfly_cluster.state import ClusterState
from butterfly_core.ids import NodeId, short


@dataclass(frozen=True, slots=True)
class Signs:
    """What speaks for the death of one member.

    ``silent_seconds``: since the coordinator heard it last, by report or in the log's channel.
    ``cut_off``: that channel is gone. ``witnesses``: other live nodes that lost it and did not
    find it again; ``others``: how many could have. ``refused``: its address was dialled just
    now, and its machine answered that nobody listens.
    """

    silent_seconds: float
    cut_off: bool = False
    witnesses: frozenset[NodeId] = frozenset()
    others: int = 0
    refused: bool = False


def cause_of_death(signs: Signs, dead_after_seconds: float) -> str | None:
    """Why the member is judged dead, for people; None while it may live.

    At once when its channel broke, somebody else lost it too and nobody listens at its address.
    Else after a silence: a third of ``dead_after_seconds`` with two witnesses, all of it with
    one (its own machine counts as one) or when nobody else could tell, twice as much alone.
    """
    if signs.refused and signs.cut_off and signs.witnesses:
        return f"nobody listens at its address, and {_names(signs.witnesses)} lost it"
    if len(signs.witnesses) >= 2:
        needed = dead_after_seconds / 3
    elif signs.witnesses or signs.refused or not signs.others:
        needed = dead_after_seconds
    else:
        needed = 2 * dead_after_seconds
    if signs.silent_seconds <= needed:
        return None
    told = f"not heard for {signs.silent_seconds:.1f} s"
    if signs.witnesses:
        return f"{told}, and {_names(signs.witnesses)} lost it"
    return f"{told}, and nobody listens at its address" if signs.refused else told


def witnesses_of(
    state: ClusterState, lost_by: Mapping[NodeId, frozenset[NodeId]], unreliable: frozenset[NodeId]
) -> dict[NodeId, frozenset[NodeId]]:
    """By member: who lost it. ``lost_by`` is what each node says that it lost.

    A node that is ``unreliable`` (silent itself) testifies for nobody. Who reported that the
    present pipeline broke has lost one of its neighbours there, so it speaks for both.
    """
    said = {node: set(lost) for node, lost in lost_by.items()}
    if state.broken_by is not None and 0 < state.broken_epoch == state.epoch:
        said.setdefault(state.broken_by, set()).update(neighbours(state, state.broken_by))
    found: dict[NodeId, set[NodeId]] = {}
    for witness, lost in said.items():
        member = state.members.get(witness)
        if member is None or not member.alive or witness in unreliable:
            continue
        for node in lost & set(state.members) - {witness}:
            found.setdefault(node, set()).add(witness)
    return {node: frozenset(by) for node, by in found.items()}


def neighbours(state: ClusterState, node_id: NodeId) -> frozenset[NodeId]:
    """The stages before and after a node's in the ring of the present plan."""
    ring = [stage.node_id for stage in state.assignment.stages] if state.assignment else []
    if node_id not in ring:
        return frozenset()
    place = ring.index(node_id)
    return frozenset({ring[place - 1], ring[(place + 1) % len(ring)]}) - {node_id}


def _names(nodes: frozenset[NodeId]) -> str:
    return ", ".join(short(node) for node in sorted(nodes))
