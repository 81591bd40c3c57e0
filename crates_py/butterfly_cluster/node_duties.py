"""What one node should tell the cluster next, and what the committed state means for it.

Both are functions from a snapshot to one answer; the caller acts on it and asks again. So a
lost proposal is simply made again, and a restart needs no special path.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from butterfly_cluster.commands import (
    Command,
    RegisterMember,
    ReportBroken,
    ReportDigests,
    ReportEngine,
    ReportFailure,
    ReportWarm,
)
from butterfly_cluster.lifecycle import (
    Event,
    Expelled,
    LayersAssigned,
    LayersRejected,
    LayersVerified,
    Node,
    NodeState,
    PipelineComplete,
    QuorumLost,
    Started,
    Unassigned,
)
from butterfly_cluster.offer_commands import OfferReport
from butterfly_cluster.state import Assignment, ClusterState, Failure
from butterfly_core.hardware import Capacity
from butterfly_core.ids import NodeId

HOLDING = (NodeState.LOADING, NodeState.READY, NodeState.OPERATIONAL)


@dataclass(frozen=True, slots=True)
class Facts:
    """What a node knows of itself beside the log.

    ``engine`` names the present run of its engine process. ``loaded_digests`` and
    ``loaded_epoch`` are of the last load that ended well, ``failure`` of one that did not;
    ``rejections_seen`` counts the rejections of this epoch that the last load came after.
    """

    registration: RegisterMember
    engine: str | None = None
    capacity: Capacity | None = None
    loaded_epoch: int = 0
    loaded_digests: Mapping[str, str] | None = None
    failure: ReportFailure | None = None
    warm_epoch: int = 0
    broken: ReportBroken | None = None
    rejections_seen: int = 0
    draining: bool = False
    offer_report: OfferReport | None = None
    """What became of the offered model here."""
    problem: str | None = None
    """Why nothing may be admitted although the committed state allows it, or None."""


def node_duty(state: ClusterState, facts: Facts) -> Command | None:
    """The first thing that the cluster does not know yet of this node, or None."""
    me = facts.registration.node_id
    member = state.members.get(me)
    if member is None or not member.alive or not _registered(state, facts.registration):
        return facts.registration
    if member.engine != facts.engine:
        return ReportEngine(me, facts.engine, facts.capacity)
    stage = state.assignment.stage_of(me) if state.assignment else None
    if stage is not None and stage.engine == facts.engine:
        duty = _epoch_duty(state, facts, me)
        if duty is not None:
            return duty
    return _offer_duty(state, facts, me)


def _offer_duty(state: ClusterState, facts: Facts, me: NodeId) -> Command | None:
    report, offer = facts.offer_report, state.open_offer
    if report is None or offer is None or report.number != offer.number or me in offer.prepared:
        return None
    return report


def _registered(state: ClusterState, wanted: RegisterMember) -> bool:
    member = state.members[wanted.node_id]
    return (
        member.address == wanted.address
        and member.http_address == wanted.http_address
        and member.role == wanted.role
        and member.version == wanted.version
        and member.carries_layers == wanted.carries_layers
        and member.zone == wanted.zone
    )


def _epoch_duty(state: ClusterState, facts: Facts, me: NodeId) -> Command | None:
    rejection = state.rejections.get(me)
    obeyed = rejection is None or rejection.count <= facts.rejections_seen
    loaded = facts.loaded_digests
    if loaded is not None and facts.loaded_epoch == state.epoch and obeyed:
        if me not in state.digests:
            return ReportDigests(state.epoch, me, loaded)
    elif facts.failure is not None and facts.failure.epoch == state.epoch:
        told = facts.failure
        known = Failure(me, told.message, told.code, told.file, told.tensor)
        if state.failures.get(me) != known:
            return told
    broken = facts.broken
    if broken is not None and broken.epoch == state.epoch != state.broken_epoch:
        return broken
    if facts.warm_epoch == state.epoch == state.validated_epoch != state.active_epoch:
        return ReportWarm(state.epoch, me)
    return None


def next_event(node: Node, state: ClusterState, facts: Facts) -> Event | None:
    """What the committed state means for this node now; ask again after each step."""
    me, engine, problem = facts.registration.node_id, facts.engine, facts.problem
    assignment = state.assignment
    if node.state is NodeState.COLD and node.epoch and not facts.draining:
        return Started()
    if node.state in HOLDING and me in state.departed:
        return Expelled("the cluster removed this node; it joins again")
    if node.state is NodeState.COLD or assignment is None or engine is None:
        return None
    if assignment.epoch > node.epoch:
        return _new_epoch(assignment, me, engine)
    if node.state is NodeState.LOADING:
        return _while_loading(node, state, me)
    if node.state is NodeState.READY and state.is_active and problem is None:
        return PipelineComplete(node.epoch) if state.active_epoch == node.epoch else None
    if node.state is NodeState.OPERATIONAL:
        if problem is not None:
            return QuorumLost(problem)
        if not state.is_active:
            return QuorumLost("a stage of the pipeline is gone; a new plan is being made")
    return None


def _new_epoch(assignment: Assignment, me: NodeId, engine: str) -> Event | None:
    stage = assignment.stage_of(me)
    if stage is None:
        return Unassigned(assignment.epoch)
    if stage.engine != engine:
        return None
    return LayersAssigned(assignment.epoch, stage.layers.start, stage.layers.stop)


def _while_loading(node: Node, state: ClusterState, me: NodeId) -> Event | None:
    rejection = state.rejections.get(me)
    if rejection is not None and rejection.count > node.rejections:
        return LayersRejected(node.epoch, rejection.reason, rejection.count)
    if state.validated_epoch == node.epoch and me in state.digests:
        return LayersVerified(node.epoch)
    return None
