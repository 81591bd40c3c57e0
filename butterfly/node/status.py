"""The cluster and the node as ``GET /status`` and ``GET /readiness`` show them. Pure views."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from butterfly import __version__
from butterfly.api.views import Check
from butterfly.node.local import Local
from butterfly.node.offer_view import offer_view
from butterfly_cluster.duties import Policy
from butterfly_cluster.lifecycle import NodeState
from butterfly_cluster.state import ClusterState, Member
from butterfly_core.hardware import Capacity
from butterfly_core.ids import ClusterId, NodeId
from butterfly_weights.signed import Signed

_ERRORS_MAX = 100


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the views need beside the state: consensus, reports, configuration."""

    me: NodeId
    cluster_name: str
    cluster_id: ClusterId | None
    coordinator: NodeId | None
    term: int
    commit_index: int
    leader_changes: int
    entries_rejected: int
    voters: frozenset[NodeId]
    reports: Mapping[NodeId, Mapping[str, Any]]
    source: str
    security: Mapping[str, Any]
    discovery: Mapping[str, Any]
    policy: Policy
    admission_problem: str | None


def status_view(state: ClusterState, local: Local, around: Surroundings) -> dict[str, Any]:
    """The document of ``GET /status``; the seed's fields first."""
    stage = state.assignment.stage_of(around.me) if state.assignment else None
    return {
        "state": local.node.state.value,
        "phase": local.phase.value,
        "progress_percent": local.progress_percent,
        "eta_seconds": local.eta_seconds,
        "cluster_size": len(state.live),
        "coordinator": around.coordinator,
        "node_id": around.me,
        "cluster_id": around.cluster_id,
        "cluster_name": around.cluster_name,
        "epoch": state.epoch,
        "layers": str(stage.layers) if stage else None,
        "merkle_root": state.validated_root,
        "trust": trust_text(state, local.signed),
        "pinned_root": state.pinned_root,
        "model": _model_view(state, around.source),
        "offer": offer_view(state, around.reports),
        "members": [_member_view(member, state, around) for member in _by_age(state)],
        "errors": _errors(state, local, around)[:_ERRORS_MAX],
        "events": list(local.events),
        "term": around.term,
        "acting": _acting_view(state),
        "commit_index": around.commit_index,
        "version": __version__,
        "uptime_seconds": round(local.uptime_seconds, 1),
        "load": _load_view(local),
        "init_seconds": {name: round(spent, 3) for name, spent in local.phase_seconds.items()},
        "security": dict(around.security),
        "discovery": dict(around.discovery),
    }


def trust_text(state: ClusterState, signed: Signed | None) -> str | None:
    """Against what the weights were proven, in words; None before they were."""
    model = state.model
    if state.validated_root is None or model is None:
        return None
    if model.manifest_root is None:
        return "pinned, not verified against a publisher"
    told = "verified against the manifest"
    if signed is None or signed.root != model.manifest_root:
        return told
    if signed.key_id is None:
        return f"{told}; signed, but no trusted_keys here tell by whom"
    return f"{told}, signed by {signed.key_id}"


def _acting_view(state: ClusterState) -> dict[str, Any] | None:
    """Whose orders count, as committed; ``coordinator`` is whom this node hears."""
    acting = state.acting
    return {"node_id": acting.node_id, "term": acting.term} if acting else None


def _load_view(local: Local) -> dict[str, Any]:
    """The present load in bytes; ``phase`` says what is done with them now."""
    load, moved = local.load, local.progress
    return {
        "phase": local.phase.value if local.node.state is NodeState.LOADING else None,
        "bytes_done": load.bytes_done,
        "bytes_total": load.bytes_total,
        "bytes_per_second": round(load.bytes_per_second or 0),
        "bytes_from_source": moved.bytes_from_source if moved else 0,
        "bytes_from_cache": moved.bytes_from_cache if moved else 0,
    }


def _by_age(state: ClusterState) -> list[Member]:
    return sorted(state.members.values(), key=lambda member: (member.joined_index, member.node_id))


def _model_view(state: ClusterState, source: str) -> dict[str, Any] | None:
    if state.model is None:
        return None
    return {
        "name": state.model.name,
        "architecture": state.model.architecture,
        "layer_count": state.model.layer_count,
        "total_bytes": state.model.total_bytes,
        "source": str(state.source) if state.source else source,
        "revision": state.model.revision,
        "manifest_root": state.model.manifest_root,
    }


def _member_view(member: Member, state: ClusterState, around: Surroundings) -> dict[str, Any]:
    stage = state.assignment.stage_of(member.node_id) if state.assignment else None
    report = around.reports.get(member.node_id, {})
    return {
        "node_id": member.node_id,
        "address": str(member.address),
        "http_address": str(member.http_address),
        "role": member.role,
        "zone": member.zone,
        "version": member.version,
        "voter": member.node_id in around.voters,
        "alive": member.alive,
        "state": report.get("state") if member.alive else "COLD",
        "phase": report.get("phase") if member.alive else None,
        "progress_percent": report.get("progress_percent", 0.0),
        "layers": str(stage.layers) if stage else None,
        **_capacity_view(member.capacity),
        "bytes_done": report.get("bytes_done", 0),
        "bytes_total": report.get("bytes_total", 0),
        "bytes_per_second": report.get("bytes_per_second", 0),
        "eta_seconds": report.get("eta_seconds"),
        "bytes_from_source": report.get("bytes_from_source", 0),
        "bytes_from_cache": report.get("bytes_from_cache", 0),
        "bytes_from_peers": report.get("bytes_from_peers", 0),
        "active_requests": report.get("active_requests", 0),
    }


def _capacity_view(capacity: Capacity | None) -> dict[str, Any]:
    keys = (
        "device",
        "device_name",
        "memory_free_bytes",
        "memory_total_bytes",
        "memory_bytes_per_second",
        "flops_per_second",
    )
    return {key: getattr(capacity, key, None) for key in keys}


def _errors(state: ClusterState, local: Local, around: Surroundings) -> list[dict[str, Any]]:
    found = [
        _error(problem.code, problem.message, around.me, problem.file, problem.tensor)
        for problem in local.problems.values()
    ]
    found += [
        _error(failure.code, failure.message, failure.node_id, failure.file, failure.tensor)
        for failure in state.failures.values()
        if failure.node_id != around.me or "load_failed" not in local.problems
    ]
    if state.broken_reason and not state.is_active:
        found.append(_error("pipeline_broken", state.broken_reason, None))
    if state.plan_problem:
        found.append(_error("no_plan", state.plan_problem, around.coordinator))
    if around.admission_problem:
        found.append(_error("not_admitting", around.admission_problem, around.me))
    return found


def _error(
    code: str, message: str, node_id: str | None, file: str | None = None, tensor: str | None = None
) -> dict[str, Any]:
    return {"code": code, "message": message, "node_id": node_id, "file": file, "tensor": tensor}


def admission_problem(
    state: ClusterState,
    policy: Policy,
    *,
    joined: bool,
    leader_silent_seconds: float,
    lease: float,
    voters: int,
    voters_heard: int,
) -> str | None:
    """Why new requests are refused although the pipeline may stand, or None. Times in seconds."""
    if not joined:
        return "this node has not joined a cluster yet"
    if leader_silent_seconds > lease:
        return (
            f"no coordinator with a majority heard for {leader_silent_seconds:.1f} s, and "
            f"{voters_heard} of {voters} voters: this node may be in a minority; check that "
            f"{voters // 2 + 1} voters run and can be reached from here"
        )
    live = len(state.live)
    if live < policy.quorum_size:
        return f"no quorum: {live} of {policy.quorum_size} members are up ([cluster] quorum_size)"
    return None


def holds_layers(state: ClusterState, me: NodeId) -> bool:
    """True when the present plan gives this node a stage."""
    return state.assignment is not None and state.assignment.stage_of(me) is not None


def readiness_view(state: ClusterState, local: Local, around: Surroundings) -> Sequence[Check]:
    """Every condition for serving, in the order in which they come true."""
    joined = around.cluster_id is not None
    live, wanted = len(state.live), around.policy.quorum_size
    validated = 0 < state.validated_epoch == state.epoch
    # a node that starts again replays a log in which its last engine still serves
    warm = state.is_active and (
        local.node.state is NodeState.OPERATIONAL or not holds_layers(state, around.me)
    )
    return (
        Check("joined", joined, f"cluster {around.cluster_id}" if joined else "not joined yet"),
        Check(
            "coordinator", around.coordinator is not None, f"{around.coordinator or 'none heard'}"
        ),
        Check("quorum", live >= wanted, f"{live} members are up, {wanted} needed"),
        Check(
            "model", state.model is not None, state.model.name if state.model else "not read yet"
        ),
        Check("plan", state.is_intact, state.plan_problem or f"epoch {state.epoch}"),
        Check("weights_validated", validated, state.validated_root or "not proven yet"),
        Check("pipeline", warm, "warm" if warm else "not connected yet"),
        Check("admitting", around.admission_problem is None, around.admission_problem or "yes"),
        Check("not_draining", not local.draining, "leaving" if local.draining else "staying"),
    )
