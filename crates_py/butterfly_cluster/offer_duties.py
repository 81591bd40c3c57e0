"""What a coordinator does about a model that is offered while another one serves. Pure.

Whatever goes wrong ends the offer, with its reason; the model that serves is not touched.
"""

from collections.abc import Mapping

from butterfly_cluster.digest_reports import Conflict, put_together
from butterfly_cluster.observations import Duty, Observations, PlanOffer, Policy, Propose
from butterfly_cluster.offer_commands import SwitchModel, WithdrawModel
from butterfly_cluster.state import ClusterState, Member, ModelOffer
from butterfly_core.ids import short


def offer_duty(
    state: ClusterState, seen: Observations, policy: Policy, machines: tuple[Member, ...]
) -> Duty | None:
    """The first thing to do about the open offer; ``machines`` may carry layers."""
    offer = state.open_offer
    if offer is None:
        return None
    lost = _lost(state, offer)
    if lost is not None:
        return Propose(WithdrawModel(offer.number, lost))
    if offer.spec is None:
        return _plan(state, seen, offer, machines)
    together = put_together(offer.part_digests, offer.prepared, offer.stages, offer.spec)
    if isinstance(together, Conflict):
        return Propose(WithdrawModel(offer.number, _told(together)))
    return _switch(state, seen, policy, offer, together) if offer.is_ready else None


def _lost(state: ClusterState, offer: ModelOffer) -> str | None:
    """Why nothing can come of the offer as it stands."""
    if offer.epoch != state.epoch or not state.is_intact:
        why = state.broken_reason if state.broken_epoch == state.epoch else None
        told = f": {why}" if why else ""
        return f"the pipeline of epoch {offer.epoch} broke meanwhile{told}; offer it again"
    for stage in offer.stages:
        if not state.lives(stage):
            return (
                f"node {short(stage.node_id)}, which was to hold layers {stage.layers} of it, or "
                "its engine, was lost; offer it again"
            )
    return None


def _plan(
    state: ClusterState, seen: Observations, offer: ModelOffer, machines: tuple[Member, ...]
) -> Duty | None:
    """As soon as this node has read the model at its place; where it cannot, it reports that."""
    found = seen.offered
    if found is None:
        return None
    if state.model is not None and found.spec.identity == state.model.identity:
        reason = f"{offer.place} is the model that is served already ({found.spec.identity[:16]})"
        return Propose(WithdrawModel(offer.number, reason))
    return PlanOffer(offer.number, machines)


def _told(conflict: Conflict) -> str:
    whose = f"node {short(conflict.other)}'s" if conflict.other else "its manifest's"
    return (
        f"node {short(conflict.node_id)}: the weights of {conflict.part} have the digest "
        f"{conflict.seen}, {whose} is {conflict.expected}"
    )


def _switch(
    state: ClusterState,
    seen: Observations,
    policy: Policy,
    offer: ModelOffer,
    part_digests: Mapping[str, str],
) -> Duty | None:
    """Between two steps: when no answer is under way any more, or those have had their time."""
    spec = offer.spec
    if spec is None or seen.offered_root_of is None:
        return None
    root = seen.offered_root_of(part_digests)
    if root != (spec.manifest_root or root):
        reason = (
            f"the weights at {offer.place} have the Merkle root {root}, and its manifest says "
            f"{spec.manifest_root}; create the manifest again if it is older than the files"
        )
        return Propose(WithdrawModel(offer.number, reason))
    idle = seen.active_requests == 0 and seen.offer_ready_seconds >= seen.requests_late_seconds
    if not idle and seen.offer_ready_seconds < policy.switch_after_seconds:
        return None
    return Propose(SwitchModel(offer.number, state.epoch + 1, root))
