"""A node that lost its log does not know what it promised: what it may still do. Pure."""

from dataclasses import replace

from butterfly_cluster.bootstrap import formed, listed
from butterfly_cluster.founding_messages import Verdict, WhoAmI
from butterfly_cluster.founding_sight import FoundingSettings, Join, Sight, Wait
from butterfly_core.ids import ClusterId


def way_back(former: ClusterId, settings: FoundingSettings, sight: Sight) -> Join | Wait:
    """Join the cluster it was of, as soon as one member of it answers; no other, ever."""
    mine = {
        address: answer
        for address, answer in sight.answers.items()
        if isinstance(answer, WhoAmI) and answer.cluster_id == former
    }
    found = formed(settings, replace(sight, answers=mine))
    if found is not None:
        return found
    others = sorted(
        f"{answer.address} belongs to the cluster {answer.cluster_id}"
        for answer in sight.heard
        if answer.cluster_id is not None
    )
    told = "; ".join(others) or f"no member of it answers at {listed(sight.answers)}"
    return Wait(
        f"this node lost its log and may join its cluster {former} only; {told}. If that cluster "
        "is gone for good, start this node once with: butterfly-node --config FILE --forget",
        alarming=True,
    )


def refusal_of(former: ClusterId | None) -> Verdict | None:
    """Why such a node promises nothing; None when it may."""
    if former is None:
        return None
    return Verdict(False, f"this node lost its log; it joins its cluster {former} or none")
