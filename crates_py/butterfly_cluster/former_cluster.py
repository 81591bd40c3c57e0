"""A node that lost its log does not know what it promised: what it may still do. Pure."""

from butterfly_cluster.founding_messages import Verdict
from butterfly_cluster.founding_sight import Decision, Join, Wait
from butterfly_core.ids import ClusterId


def bound(decision: Decision, former: ClusterId | None) -> Decision:
    """The decision of such a node: to join the cluster it was of, or to wait for it."""
    if former is None or isinstance(decision, Wait):
        return decision
    if isinstance(decision, Join) and decision.cluster_id == former:
        return decision
    found = f"; {decision.cluster_id} is another one" if isinstance(decision, Join) else ""
    return Wait(
        f"this node lost its log and waits for its cluster {former}{found}. If that one is gone "
        "for good, start this node once with --forget",
        alarming=True,
    )


def refusal_of(former: ClusterId | None) -> Verdict | None:
    """Why such a node promises nothing; None when it may."""
    if former is None:
        return None
    return Verdict(False, f"this node lost its log; it joins its cluster {former} or none")
