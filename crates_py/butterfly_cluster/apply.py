"""The only way in which the replicated state changes.

``apply`` is pure and total: every node gets the same state from the same log, and a command
that is stale, late or nonsense changes nothing.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar, assert_never

from butterfly_cluster.apply_offers import OfferCommand, change_offer, covers, withdrawn
from butterfly_cluster.commands import (
    ActAsCoordinator,
    AssignLayers,
    Command,
    DescribeModel,
    MarkDown,
    Order,
    Ordered,
    PassValidation,
    RegisterMember,
    RejectDigests,
    RemoveMember,
    Repin,
    Report,
    ReportBroken,
    ReportDigests,
    ReportEngine,
    ReportFailure,
    ReportPlanProblem,
    ReportWarm,
    Wish,
)
from butterfly_cluster.state import (
    Assignment,
    ClusterState,
    Failure,
    Member,
    Rejection,
)
from butterfly_core.ids import NodeId

FAILURES_MAX = 100
DEPARTED_MAX = 100
T = TypeVar("T")


def apply(state: ClusterState, index: int, command: Command) -> ClusterState:
    """The state after the entry at ``index``."""
    if is_fenced(state, command):
        return replace(state, index=index)
    if isinstance(command, ActAsCoordinator):
        return replace(state, acting=command.by, index=index)
    order = command.order if isinstance(command, Ordered) else command
    return replace(_change(state, index, order), index=index)


def is_fenced(state: ClusterState, command: Command) -> bool:
    """True for the wish of a coordinator that does not act, whoever handed it in.

    A node may remove itself; every other order without a name counts only as long as nobody
    acts, which was so in logs of the first version.
    """
    acting = state.acting
    if isinstance(command, Ordered):
        return command.by != acting
    if acting is None or isinstance(command, RemoveMember):
        return False
    if isinstance(command, ActAsCoordinator):
        return command.by.term <= acting.term and command.by != acting
    return isinstance(command, Order)


def _change(state: ClusterState, index: int, command: Order | Report | Wish) -> ClusterState:
    if isinstance(command, OfferCommand):
        return change_offer(state, command)
    match command:
        case RegisterMember() | ReportEngine() | MarkDown() | RemoveMember():
            return _change_members(state, index, command)
        case DescribeModel():
            return _describe(state, command)
        case AssignLayers():
            return _assign(state, command)
        case ReportPlanProblem(message=message):
            return replace(state, plan_problem=message)
        case Repin(root=root):
            return _repin(state) if root == state.pinned_root else state
        case _:
            return _change_epoch(state, command)


def _change_members(
    state: ClusterState,
    index: int,
    command: RegisterMember | ReportEngine | MarkDown | RemoveMember,
) -> ClusterState:
    known = state.members.get(command.node_id)
    match command:
        case RegisterMember():
            back = tuple(node for node in state.departed if node != command.node_id)
            state = replace(state, departed=back)
            return _with_member(state, _registered(known, index, command))
        case RemoveMember(node_id=node_id):
            members = {key: value for key, value in state.members.items() if key != node_id}
            departed = (*state.departed, node_id) if known else state.departed
            return replace(
                state,
                members=members,
                departed=departed[-DEPARTED_MAX:],
                failures=_without(state.failures, node_id),
            )
        case ReportEngine(engine=engine, capacity=capacity) if known is not None:
            return _with_member(state, replace(known, engine=engine, capacity=capacity))
        case MarkDown() if known is not None:
            return _with_member(state, replace(known, alive=False))
        case ReportEngine() | MarkDown():
            return state
        case _:
            assert_never(command)


def _registered(known: Member | None, index: int, command: RegisterMember) -> Member:
    fresh = Member(
        node_id=command.node_id,
        address=command.address,
        http_address=command.http_address,
        role=command.role,
        version=command.version,
        carries_layers=command.carries_layers,
        zone=command.zone,
        joined_index=known.joined_index if known else index,
    )
    if known is None:
        return fresh
    return replace(fresh, engine=known.engine, capacity=known.capacity)


def _with_member(state: ClusterState, member: Member) -> ClusterState:
    return replace(state, members={**state.members, member.node_id: member})


def _describe(state: ClusterState, command: DescribeModel) -> ClusterState:
    """The first description holds from the first proof on; before it, a newer one replaces it."""
    if state.validated_epoch:
        return state
    return replace(state, model=command.spec, part_digests=dict(command.part_digests))


def _repin(state: ClusterState) -> ClusterState:
    """Nothing is known of the weights any more, and a new plan makes everybody load anew."""
    return replace(
        state,
        pinned_root=None,
        part_digests={},
        validated_epoch=0,
        validated_root=None,
        plan_problem=None,
        repinned_epoch=state.epoch,
        broken_epoch=state.epoch,
        broken_reason=f"the pinned root {state.pinned_root} was given up; all nodes load anew",
        broken_by=None,
    )


def _assign(state: ClusterState, command: AssignLayers) -> ClusterState:
    if command.epoch != state.epoch + 1 or not _covers_the_model(state, command):
        return state
    state = withdrawn(state, f"a new plan was made (epoch {command.epoch}) before it was ready")
    assignment = Assignment(
        command.epoch, command.stages, command.kv_tokens, command.model, command.considered
    )
    return replace(
        state,
        assignment=assignment,
        plan_problem=None,
        digests={},
        rejections={},
        failures={},
    )


def _covers_the_model(state: ClusterState, command: AssignLayers) -> bool:
    if state.model is None or command.model != state.model.identity:
        return False
    known = all(stage.node_id in state.members for stage in command.stages)
    return known and covers(state.model, command.stages)


EpochCommand = (
    ReportDigests | ReportFailure | RejectDigests | PassValidation | ReportWarm | ReportBroken
)


def _change_epoch(state: ClusterState, command: EpochCommand) -> ClusterState:
    if state.assignment is None or command.epoch != state.epoch:
        return state
    if isinstance(command, PassValidation):
        return _validate(state, state.assignment, command)
    if state.assignment.stage_of(command.node_id) is None:
        return state
    match command:
        case ReportDigests(node_id=node_id, part_digests=digests):
            return replace(
                state,
                digests={**state.digests, node_id: dict(digests)},
                failures=_without(state.failures, node_id),
            )
        case ReportFailure():
            return _with_failure(state, command)
        case RejectDigests():
            return _reject(state, command)
        case ReportWarm(node_id=node_id, epoch=epoch):
            warm = node_id == state.assignment.head and state.validated_epoch == epoch
            return _activated(state, epoch) if warm else state
        case ReportBroken():
            return _broken(state, command)
        case _:
            assert_never(command)


def _activated(state: ClusterState, epoch: int) -> ClusterState:
    return replace(state, active_epoch=epoch, broken_reason=None, broken_in_a_row=0)


def _broken(state: ClusterState, command: ReportBroken) -> ClusterState:
    if state.broken_epoch == command.epoch:
        return state
    return replace(
        state,
        broken_epoch=command.epoch,
        broken_reason=command.reason,
        broken_by=command.node_id,
        broken_in_a_row=state.broken_in_a_row + 1,
    )


def _with_failure(state: ClusterState, command: ReportFailure) -> ClusterState:
    failure = Failure(command.node_id, command.message, command.code, command.file, command.tensor)
    failures = {**_without(state.failures, command.node_id), command.node_id: failure}
    newest = dict(list(failures.items())[-FAILURES_MAX:])
    return replace(state, failures=newest)


def _reject(state: ClusterState, command: RejectDigests) -> ClusterState:
    if command.node_id not in state.digests:
        return state
    before = state.rejections.get(command.node_id)
    rejection = Rejection(command.reason, before.count + 1 if before else 1)
    failure = Failure(command.node_id, command.reason, "digests_rejected")
    return replace(
        state,
        digests=_without(state.digests, command.node_id),
        rejections={**state.rejections, command.node_id: rejection},
        failures={**state.failures, command.node_id: failure},
    )


def _validate(state: ClusterState, assignment: Assignment, command: PassValidation) -> ClusterState:
    """Only when every part of every stage was reported, and the root is the one expected.

    Without a manifest this pins the root, and every part's digest: what differs later is
    rejected by name.
    """
    model = state.model
    if state.repinned_epoch == command.epoch:
        return state
    if model is None or command.root != (model.manifest_root or state.pinned_root or command.root):
        return state
    for stage in assignment.stages:
        needed = model.parts_of(stage.layers)
        if not set(needed) <= set(state.digests.get(stage.node_id, {})):
            return state
    validated = replace(
        state, validated_epoch=command.epoch, validated_root=command.root, plan_problem=None
    )
    if model.manifest_root:
        return validated
    proven = {part: digest for told in state.digests.values() for part, digest in told.items()}
    return replace(validated, pinned_root=command.root, part_digests=proven)


def _without(mapping: Mapping[NodeId, T], node_id: NodeId) -> Mapping[NodeId, T]:
    return {key: value for key, value in mapping.items() if key != node_id}
