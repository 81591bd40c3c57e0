"""What a coordinator does about a model that is offered while another one serves. Pure.

Whatever goes wrong ends the offer, with its reason; the model that serves is not touched.
"""

from butterfly_cluster.observations import Duty, Observations, PlanOffer, Policy, Propose
from butterfly_cluster.offer_commands import SwitchModel, WithdrawModel
from butterfly_cluster.state import ClusterState, Member, ModelOffer
from butterfly_core.ids import NodeId, short
from butterfly_core.model import ModelSpec


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
    wrong = _wrong_digest(offer, offer.spec)
    if wrong is not None:
        return Propose(WithdrawModel(offer.number, wrong))
    return _switch(state, seen, policy, offer, offer.spec) if offer.is_ready else None


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


def _wrong_digest(offer: ModelOffer, spec: ModelSpec) -> str | None:
    """A part that is not what the manifest says, or of which two nodes say different things."""
    together: dict[str, str] = dict(offer.part_digests)
    told_by: dict[str, NodeId] = {}
    for stage in offer.stages:
        reported = offer.prepared.get(stage.node_id)
        if reported is None:
            continue
        for part in spec.parts_of(stage.layers):
            seen = reported.get(part, "none")
            expected = together.setdefault(part, seen)
            if seen != expected:
                other = told_by.get(part)
                whose = f"node {short(other)}'s" if other else "its manifest's"
                return (
                    f"node {short(stage.node_id)}: the weights of {part} have the digest {seen}, "
                    f"{whose} is {expected}"
                )
            told_by[part] = stage.node_id
    return None


def _switch(
    state: ClusterState, seen: Observations, policy: Policy, offer: ModelOffer, spec: ModelSpec
) -> Duty | None:
    """Between two steps: when no answer is under way any more, or those have had their time."""
    if seen.offered_root_of is None:
        return None
    digests = {part: digest for told in offer.prepared.values() for part, digest in told.items()}
    root = seen.offered_root_of(digests)
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
