"""When a node may promise itself to a founding, and when a promise binds no more. Pure.

A promise is for one proposal of one candidate. It binds until that candidate itself, asked
after the promise was given, shows that it dropped the proposal without having founded with
it. A candidate writes a proposal down before it speaks of it, and never takes up one again
that it dropped; so what it shows is final, however late any message arrives.
"""

from collections.abc import Sequence

from butterfly_cluster.bootstrap import listed
from butterfly_cluster.founding_messages import Proposal, Verdict, WhoAmI
from butterfly_cluster.founding_sight import Answers, FoundingSettings
from butterfly_core.ids import ClusterId, NodeId, short


def consider(
    proposal: Proposal,
    me: NodeId,
    settings: FoundingSettings,
    *,
    seeds: Sequence[str],
    cluster_id: ClusterId | None,
    promise: Proposal | None,
) -> Verdict:
    """May this node, which sees these ``seeds`` now, promise?

    The caller writes a granted promise down before it answers.
    """
    if proposal.cluster_name != settings.cluster_name:
        return Verdict(
            False, f"this node is of {settings.cluster_name!r}, not {proposal.cluster_name!r}"
        )
    if cluster_id is not None:
        return Verdict(False, f"this node belongs to the cluster {cluster_id} already")
    if set(proposal.seeds) != set(seeds):
        return Verdict(
            False,
            f"the founders do not agree: {short(proposal.candidate)} lists "
            f"{listed(proposal.seeds)}, {settings.address} lists {listed(seeds)}",
        )
    if promise is None or promise == proposal:
        return Verdict(True, "promised")
    if promise.candidate == me and proposal.candidate < me:
        return Verdict(True, "promised; this node drops its own proposal")
    if promise.candidate == proposal.candidate:
        return Verdict(False, "promised to another proposal of the same node, until it is dropped")
    return Verdict(False, f"promised to {short(promise.candidate)} already")


def is_released(promise: Proposal, answers: Answers) -> bool:
    """True when the candidate itself shows that it dropped the proposal without founding.

    ``answers`` must all have been asked for after the promise was written down: what the
    candidate said before it proposed says nothing.
    """
    for answer in answers.values():
        if isinstance(answer, WhoAmI) and answer.node_id == promise.candidate:
            return answer.cluster_id is None and answer.promised_number != promise.number
    return False
