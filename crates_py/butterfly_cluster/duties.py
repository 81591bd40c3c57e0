"""What a coordinator should do next, computed from what is committed and what it sees.

``coordinator_duty`` is a function from a snapshot to the first duty; the caller does it and
asks again, so a restart, a lost answer or a new coordinator needs no special path. It does not
look at whether it leads: a cut-off coordinator can wish, but only committed entries move
anything.
"""

from butterfly_cluster.commands import (
    ActAsCoordinator,
    MarkDown,
    PassValidation,
    RejectDigests,
    RemoveMember,
    ReportPlanProblem,
)
from butterfly_cluster.digest_reports import Conflict, put_together
from butterfly_cluster.liveness import Signs, cause_of_death
from butterfly_cluster.observations import (
    Act,
    Demote,
    Duty,
    HandOver,
    MakePlan,
    Observations,
    PlanOffer,
    Policy,
    Promote,
    Propose,
)
from butterfly_cluster.offer_duties import offer_duty
from butterfly_cluster.state import Acting, Assignment, ClusterState, Member
from butterfly_cluster.voters import voter_duty
from butterfly_core.ids import NodeId, short

__all__ = [
    "Act",
    "Demote",
    "Duty",
    "HandOver",
    "MakePlan",
    "Observations",
    "PlanOffer",
    "Policy",
    "Promote",
    "Propose",
    "coordinator_duty",
]

REST_SECONDS_MAX = 30.0


def coordinator_duty(state: ClusterState, seen: Observations, policy: Policy) -> Duty | None:
    """The first thing a coordinator should do now, or None.

    First of all it is committed who acts: what an earlier coordinator still wishes is fenced
    off from there on, and all that was committed before is applied here.
    """
    by = Acting(seen.term, seen.me)
    if state.acting != by:
        return Act(ActAsCoordinator(by))
    return (
        _bury_the_dead(state, seen, policy)
        or _describe(state, seen)
        or offer_duty(state, seen, policy, _machines(_carriers(state)))
        or (_plan(state, seen, policy) if seen.may_plan else None)
        or _judge_digests(state, seen)
        or voter_duty(state, seen, policy)
        or _forget_the_long_dead(state, seen, policy)
    )


def _bury_the_dead(state: ClusterState, seen: Observations, policy: Policy) -> Duty | None:
    live = [member.node_id for member in state.live]
    for node in live:
        if node == seen.me:
            continue
        signs = Signs(
            silent_seconds=seen.silent_seconds.get(node, 0.0),
            cut_off=node in seen.cut_off,
            witnesses=seen.witnesses.get(node, frozenset()),
            others=len([other for other in live if other not in (node, seen.me)]),
            refused=node in seen.refused,
        )
        cause = cause_of_death(signs, policy.dead_after_seconds)
        if cause is not None:
            return Propose(MarkDown(node, cause))
    return None


def _forget_the_long_dead(state: ClusterState, seen: Observations, policy: Policy) -> Duty | None:
    """Only while a majority of the voters lives without it; who returns registers again."""
    live = {member.node_id for member in state.live} - seen.mute | {seen.me}
    if 2 * len(seen.voters & live) <= len(seen.voters):
        return None
    for member in state.members.values():
        silent = seen.silent_seconds.get(member.node_id, 0.0)
        long_dead = not member.alive and silent > policy.forget_dead_after_seconds
        if long_dead and member.node_id != seen.me:
            reason = f"dead and not heard for {silent:.0f} s"
            return Propose(RemoveMember(member.node_id, reason))
    return None


def _describe(state: ClusterState, seen: Observations) -> Duty | None:
    found = seen.described
    if found is None or state.validated_epoch:
        return None
    same = state.model is not None and state.model.identity == found.spec.identity
    return None if same else Propose(found)


def _plan(state: ClusterState, seen: Observations, policy: Policy) -> Duty | None:
    if state.model is None:
        return None
    if len(state.live) < policy.quorum_size:
        return None
    carriers = _carriers(state)
    if any(_is_doubtful(state, member, seen, policy) for member in carriers):
        return None
    machines = _machines(carriers)
    waiting = len(machines) < len(carriers)
    rested = seen.settled_seconds >= policy.engine_grace_seconds if waiting else True
    if not machines:
        return None
    assignment = state.assignment
    if assignment is None or assignment.model != state.model.identity:
        gathered = seen.gathered_seconds >= policy.plan_grace_seconds
        return MakePlan(state.epoch + 1, machines) if gathered and rested else None
    if not state.is_intact:
        if 0 < state.broken_epoch == state.epoch and seen.broken_seconds < _rest(state):
            return None
        return MakePlan(state.epoch + 1, machines) if rested else None
    if _has_newcomer(assignment, machines, seen) and _may_rebalance(state, seen, policy):
        return MakePlan(state.epoch + 1, machines)
    return None


def _carriers(state: ClusterState) -> list[Member]:
    return [member for member in state.live if member.carries_layers]


def _machines(carriers: list[Member]) -> tuple[Member, ...]:
    return tuple(member for member in carriers if member.engine and member.capacity)


def _is_doubtful(state: ClusterState, member: Member, seen: Observations, policy: Policy) -> bool:
    """Not planned with, and not yet without: silent for a third of what makes it dead, or not
    heard since the pipeline broke, which it may have done by dying."""
    if member.node_id == seen.me:
        return False
    silent = seen.silent_seconds.get(member.node_id, 0.0)
    if 0 < state.broken_epoch == state.epoch and silent >= seen.broken_seconds:
        return True
    return silent > policy.dead_after_seconds / 3


def _rest(state: ClusterState) -> float:
    """A pipeline that breaks again and again before it ever served is tried less and less often."""
    return 0.0 if state.broken_in_a_row < 2 else min(2.0**state.broken_in_a_row, REST_SECONDS_MAX)


def _has_newcomer(assignment: Assignment, machines: tuple[Member, ...], seen: Observations) -> bool:
    known = {*assignment.considered, *seen.considered}
    return any(machine.engine not in known for machine in machines)


def _may_rebalance(state: ClusterState, seen: Observations, policy: Policy) -> bool:
    if state.open_offer is not None:  # it is planned anew as it comes
        return False
    if not state.is_active:  # a load under way is not given up, unless it fails
        return bool(state.failures) and seen.settled_seconds >= policy.rebalance_after_seconds
    return (
        policy.rebalance_when_idle
        and seen.active_requests == 0
        and seen.settled_seconds >= policy.rebalance_after_seconds
    )


def _judge_digests(state: ClusterState, seen: Observations) -> Duty | None:
    assignment, model = state.assignment, state.model
    if assignment is None or model is None:
        return None
    if state.epoch in (state.validated_epoch, state.repinned_epoch):
        return None
    together = put_together(state.part_digests, state.digests, assignment.stages, model)
    if isinstance(together, Conflict):
        return _reject(state, together)
    if len(state.digests) < len(assignment.stages) or seen.root_of is None:
        return None
    return _pass_or_reject(state, seen.root_of(together))


def _reject(state: ClusterState, conflict: Conflict) -> Duty:
    """Of two nodes that differ while nothing says who is right, they load again in turn."""
    node_id, other = conflict.node_id, conflict.other
    seen, expected = conflict.seen, conflict.expected
    unknown = conflict.part not in state.part_digests
    if other and unknown and _rejected(state, other) < _rejected(state, node_id):
        node_id, seen, expected = other, expected, seen
    reason = (
        f"node {short(node_id)}: the weights of {conflict.part} have the digest {seen}, "
        f"the model's is {expected}; the node drops them and loads again"
    )
    if state.pinned_root is not None:
        reason += "; what was pinned is given up with butterfly-admin manifest repin"
    return Propose(RejectDigests(state.epoch, node_id, reason))


def _rejected(state: ClusterState, node_id: NodeId) -> int:
    rejection = state.rejections.get(node_id)
    return rejection.count if rejection else 0


def _pass_or_reject(state: ClusterState, root: str) -> Duty | None:
    model = state.model
    expected = (model.manifest_root if model else None) or state.pinned_root or root
    if root == expected:
        return Propose(PassValidation(state.epoch, root))
    problem = (
        f"the weights at the source have the Merkle root {root}, and {expected} was agreed; "
        "restore the model's files, or start a new cluster for another model; a pinned root is "
        "given up with butterfly-admin manifest repin"
    )
    return None if state.plan_problem == problem else Propose(ReportPlanProblem(problem))
