"""Who should vote, and the next single change on the way there. Pure.

The wanted set is computed from who is fit: an odd number of them, coordinators first, then
spread over the zones, then those that vote already, then the longest-lived. Voters come before
equals that do not vote yet, so a set that was reached stays: nothing flaps. One step is taken at
a time (Raft thesis 4.1), and none that leaves fewer live voters than a majority.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from butterfly_cluster.observations import Demote, HandOver, Observations, Policy, Promote
from butterfly_cluster.state import ClusterState, Member
from butterfly_core.ids import NodeId

_VOTERS_KEPT_MIN = 3
"""The dead keep their seat in so small a set when nobody can replace them: they may come back."""

VoterDuty = Promote | Demote | HandOver


@dataclass(frozen=True, slots=True)
class _Seats:
    """The voters by how they are. ``fit``: live and able to vote, with learners that may become
    voters. ``held``: down for a short time, or not registered yet. ``lost``: down for long, or
    mute. Who departed is in none of them."""

    fit: frozenset[NodeId]
    held: frozenset[NodeId]
    lost: frozenset[NodeId]


def voter_duty(state: ClusterState, seen: Observations, policy: Policy) -> VoterDuty | None:
    """The next change of the voters, or None when they are as they should be."""
    seats = _seats(state, seen, policy)
    fit = seen.voters & (seats.fit | {seen.me})
    if not _is_majority(len(fit), len(seen.voters)):
        return None  # nothing could be committed
    wanted = wanted_voters(state.members, seen.voters, seats.fit, seats.held, seats.lost, policy)
    useless = sorted(seen.voters - wanted - seats.fit - {seen.me})
    if useless and _is_majority(len(fit), len(seen.voters) - 1):
        return Demote(useless[0])
    fresh = sorted(wanted - seen.voters, key=lambda node: _age(state.members, node))
    if fresh and len(seen.voters) < len(wanted):
        return Promote(fresh[0])
    if fit != seen.voters:
        return None  # while a voter is down, the others are its majority
    if len(seen.voters) > len(wanted):
        return _one_less(seen, wanted, state.members)
    if fresh and seen.gathered_seconds >= policy.replace_after_seconds:
        return Promote(fresh[0])
    return None


def wanted_voters(
    members: Mapping[NodeId, Member],
    voters: frozenset[NodeId],
    fit: frozenset[NodeId],
    held: frozenset[NodeId],
    lost: frozenset[NodeId],
    policy: Policy,
) -> frozenset[NodeId]:
    """The set to reach; ``held`` keep their seats, ``lost`` only while nobody replaces them."""
    whole = sorted(fit | held)
    absent = sorted(lost)
    count = _odd(min(len(whole) + len(absent), policy.max_voters))
    while count > max(len(whole), _VOTERS_KEPT_MIN):
        count -= 2
    chosen: list[NodeId] = sorted(held)[:count]
    zones = Counter(_zone(members, node) for node in chosen)
    while len(chosen) < count and set(whole) - set(chosen):
        best = min(
            (node for node in whole if node not in chosen),
            key=lambda node: (
                members[node].role != "coordinator",
                zones[members[node].zone],
                node not in voters,
                _age(members, node),
            ),
        )
        zones[members[best].zone] += 1
        chosen.append(best)
    return frozenset([*chosen, *absent][:count])


def _seats(state: ClusterState, seen: Observations, policy: Policy) -> _Seats:
    live = {member.node_id for member in state.live} - seen.mute
    fit = live & (seen.voters | seen.caught_up)
    away = seen.voters - live - set(state.departed)
    lost = {
        voter
        for voter in away
        if voter in seen.mute or seen.silent_seconds.get(voter, 0.0) > policy.demote_after_seconds
    }
    lost.discard(seen.me)
    return _Seats(frozenset(fit), frozenset(away - lost), frozenset(lost))


def _one_less(
    seen: Observations, wanted: frozenset[NodeId], members: Mapping[NodeId, Member]
) -> VoterDuty | None:
    """A leader does not remove itself: it lets another voter lead, which then does it."""
    surplus = sorted(seen.voters - wanted - {seen.me}, key=lambda node: _age(members, node))
    if surplus:
        return Demote(surplus[-1])
    return HandOver() if len(seen.voters) > 1 else None


def _is_majority(count: int, of: int) -> bool:
    return 2 * count > of


def _odd(count: int) -> int:
    return count - 1 + count % 2


def _zone(members: Mapping[NodeId, Member], node: NodeId) -> str:
    return members[node].zone if node in members else ""


def _age(members: Mapping[NodeId, Member], node: NodeId) -> tuple[int, NodeId]:
    return members[node].joined_index, node
