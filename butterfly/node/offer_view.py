"""An offered model as ``GET /status`` shows it. Pure."""

from collections.abc import Mapping
from typing import Any

from butterfly_cluster.state import ClusterState, ModelOffer
from butterfly_core.ids import NodeId


def offer_view(
    state: ClusterState, reports: Mapping[NodeId, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """The newest offer, also when it has ended; ``state`` is one of reading, preparing, switching,
    switched and withdrawn."""
    offer = state.offer
    if offer is None:
        return None
    return {
        "number": offer.number,
        "source": str(offer.place),
        "state": _state_of(offer),
        "reason": offer.withdrawn,
        "name": offer.spec.name if offer.spec else None,
        "revision": offer.spec.revision if offer.spec else None,
        "manifest_root": offer.spec.manifest_root if offer.spec else None,
        "epoch": offer.switched_epoch or None,
        "nodes": len(offer.stages),
        "nodes_prepared": len(offer.prepared),
        **_bytes_of(offer, reports),
    }


def _state_of(offer: ModelOffer) -> str:
    if offer.withdrawn is not None:
        return "withdrawn"
    if offer.switched_epoch:
        return "switched"
    if offer.is_ready:
        return "switching"
    return "reading" if offer.spec is None else "preparing"


def _bytes_of(offer: ModelOffer, reports: Mapping[NodeId, Mapping[str, Any]]) -> dict[str, int]:
    """Of what differs from the model that is served; nothing of an offer that has ended."""
    told = [reports.get(stage.node_id, {}) for stage in offer.stages] if offer.is_open else []
    keys = ("offer_bytes_done", "offer_bytes_total")
    done, total = (sum(int(report.get(key, 0)) for report in told) for key in keys)
    return {"bytes_done": done, "bytes_total": total}
