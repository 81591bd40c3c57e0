"""How an offered model changes the replicated state. Pure and total, as all of ``apply``.

The model that is served changes in one place: ``_switch``, with the first epoch of the new one.
"""

from dataclasses import replace
from typing import assert_never

from butterfly_cluster.offer_commands import (
    CallOffOffer,
    OfferModel,
    OfferOrder,
    OfferReport,
    PrepareModel,
    ReportPrepared,
    ReportUnprepared,
    SwitchModel,
    WithdrawModel,
)
from butterfly_cluster.state import AssignedStage, Assignment, ClusterState, ModelOffer
from butterfly_core.model import ModelSpec

OfferCommand = OfferModel | CallOffOffer | OfferOrder | OfferReport


def change_offer(state: ClusterState, command: OfferCommand) -> ClusterState:
    """The state after a command about an offer; of another number it changes nothing."""
    if isinstance(command, OfferModel):
        return _offered(state, command)
    offer = state.open_offer
    if offer is None or offer.number != command.number:
        return state
    match command:
        case PrepareModel():
            return _prepare(state, offer, command)
        case ReportPrepared():
            return _prepared(state, offer, command)
        case ReportUnprepared(node_id=node_id, message=message):
            return withdrawn(state, message) if node_id in state.members else state
        case CallOffOffer():
            return withdrawn(state, "a person called it off")
        case WithdrawModel(reason=reason):
            return withdrawn(state, reason)
        case SwitchModel():
            return _switch(state, offer, command)
        case _:
            assert_never(command)


def withdrawn(state: ClusterState, reason: str) -> ClusterState:
    """Without the offer that was open, if one was; nothing else is touched."""
    offer = state.open_offer
    if offer is None:
        return state
    return replace(state, offer=replace(offer, withdrawn=reason, prepared={}, part_digests={}))


def _offered(state: ClusterState, command: OfferModel) -> ClusterState:
    newest = state.offer.number if state.offer else 0
    if state.open_offer is not None or command.number != newest + 1 or not state.is_active:
        return state
    return replace(state, offer=ModelOffer(command.number, command.place, state.epoch))


def _prepare(state: ClusterState, offer: ModelOffer, command: PrepareModel) -> ClusterState:
    if offer.spec is not None or not covers(command.spec, command.stages):
        return state
    if not all(map(state.lives, command.stages)):
        return state
    planned = replace(
        offer,
        place=command.place,
        spec=command.spec,
        part_digests=dict(command.part_digests),
        stages=command.stages,
        kv_tokens=command.kv_tokens,
        considered=command.considered,
    )
    return replace(state, offer=planned)


def covers(spec: ModelSpec, stages: tuple[AssignedStage, ...]) -> bool:
    """True when these stages hold each layer of the model once, each on a node of its own."""
    expected = 0
    for stage in stages:
        if stage.layers.start != expected:
            return False
        expected = stage.layers.stop
    holders = {stage.node_id for stage in stages}
    return expected == spec.layer_count and len(holders) == len(stages)


def _prepared(state: ClusterState, offer: ModelOffer, command: ReportPrepared) -> ClusterState:
    stage = offer.stage_of(command.node_id)
    if stage is None or offer.spec is None:
        return state
    if not set(offer.spec.parts_of(stage.layers)) <= command.part_digests.keys():
        return state
    prepared = {**offer.prepared, command.node_id: dict(command.part_digests)}
    return replace(state, offer=replace(offer, prepared=prepared))


def _switch(state: ClusterState, offer: ModelOffer, command: SwitchModel) -> ClusterState:
    """Only when every stage told its digests and still runs, and the root is the one expected."""
    spec = offer.spec
    if spec is None or not offer.is_ready or command.epoch != state.epoch + 1:
        return state
    if not state.is_intact or not all(map(state.lives, offer.stages)):
        return state
    if command.root != (spec.manifest_root or command.root):
        return state
    proven = {part: digest for told in offer.prepared.values() for part, digest in told.items()}
    return replace(
        state,
        model=spec,
        source=offer.place,
        part_digests=offer.part_digests if spec.manifest_root else proven,
        pinned_root=None if spec.manifest_root else command.root,
        assignment=Assignment(
            command.epoch, offer.stages, offer.kv_tokens, spec.identity, offer.considered
        ),
        plan_problem=None,
        digests={},
        rejections={},
        failures={},
        offer=replace(offer, prepared={}, part_digests={}, switched_epoch=command.epoch),
    )
