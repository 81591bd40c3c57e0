"""How a cluster is born once, and how a node finds the one that is there. Pure.

A cluster is born by durable promises of its expected founders: the addresses that the node's
source names now. From a static list a majority of it must promise, and two majorities of one
list share a node. A list that may change or differ by viewer (DNS, multicast, Consul) needs
``quorum_size`` promises as well; while that is more than half of all machines, any two births
share a node. So does a static list in which a node finds itself only by asking who answers to
a name: others may answer to it as well. A node promises once (``promises``), so there are no
two births.

The founder with the smallest id among those that are up asks for the promises; with a
registry, the one that holds the ``Claim``. A node founds only when its own address is in the
list, or when ``seed_nodes`` is empty and its role is coordinator. Everybody else waits for a
cluster and joins it as a learner.
"""

from collections.abc import Iterable, Mapping, Sequence

from butterfly_cluster.claims import CLAIM_GONE_SECONDS, Claim
from butterfly_cluster.founding_messages import WhoAmI, cluster_id_of
from butterfly_cluster.founding_sight import (
    Answers,
    Decision,
    Found,
    FoundingSettings,
    Join,
    Sight,
    SourceName,
    TakeClaim,
    Wait,
)
from butterfly_core.errors import ConfigError
from butterfly_core.ids import NodeId, short

_LISTS: Mapping[SourceName, str] = {
    "static": "seed_nodes",
    "dns": "the list from DNS",
    "multicast": "the list heard by multicast",
    "consul": "the list in Consul",
}


def promises_needed(settings: FoundingSettings, seeds: Sequence[str]) -> int:
    """How many promises, this node's own among them, make a cluster of this list."""
    majority = len(set(seeds)) // 2 + 1
    if settings.is_dynamic or is_behind_a_name(settings, seeds):
        return max(majority, settings.quorum_size)
    return majority if seeds else 1


def is_behind_a_name(settings: FoundingSettings, seeds: Sequence[str]) -> bool:
    """True when this node's own address is not listed, so that it can only be one behind a name.

    A coordinator is the one that a person told to found; it need not share its name.
    """
    listed_itself = not seeds or settings.address in seeds
    return not (settings.is_dynamic or listed_itself or settings.role == "coordinator")


def may_found(me: NodeId, settings: FoundingSettings, sight: Sight) -> bool:
    """True when this node is one of its own list, by address or because it answered there."""
    if not settings.is_dynamic and not sight.seeds:
        return settings.role == "coordinator"
    if settings.address in sight.seeds:
        return True
    return any(answer.node_id == me for answer in sight.heard)


def decide(me: NodeId, settings: FoundingSettings, sight: Sight) -> Decision:
    """What to do, given what was seen. Raises ConfigError when waiting can never help."""
    if not settings.is_dynamic and not sight.seeds:
        if settings.role == "coordinator":
            return Found((me,))
        raise ConfigError(
            "seed_nodes is empty: a worker joins through a seed; name at least one node, "
            "or give one node the role coordinator"
        )
    found = _claimed(settings, sight, formed(settings, sight))
    if found is not None:
        return found
    if settings.is_dynamic and len(set(sight.seeds)) < settings.quorum_size:
        return Wait(
            f"{_LISTS[settings.source]} names {listed(sight.seeds)}, and a cluster begins with "
            f"{settings.quorum_size} nodes or more (quorum_size)"
        )
    if not may_found(me, settings, sight):
        return Wait(
            f"no node of {listed(sight.seeds)} belongs to a cluster yet{_silent(sight.answers)}; "
            f"this node's address {settings.address} is not in {_LISTS[settings.source]}, "
            "so it joins and never founds"
        )
    return _found_or_wait(me, settings, sight)


def formed(settings: FoundingSettings, sight: Sight) -> Join | Wait | None:
    """The cluster that is there, by those who answered; None when nobody belongs to one."""
    belonging = [answer for answer in sight.heard if answer.cluster_id is not None]
    for answer in belonging:
        if answer.cluster_name != settings.cluster_name:
            return Wait(_other_name(settings, answer), alarming=True)
        if answer.cluster_id != cluster_id_of(
            answer.cluster_name, answer.founders, answer.generation
        ):
            return Wait(
                f"{answer.address} names the cluster {answer.cluster_id}, which does not fit "
                "its first voters; is it of another version?",
                alarming=True,
            )
    ids = {str(answer.cluster_id): answer.address for answer in belonging}
    if len(ids) > 1:
        named = ", ".join(f"{name} (at {address})" for name, address in sorted(ids.items()))
        return Wait(
            f"there are {len(ids)} clusters under the name {settings.cluster_name!r}: {named}; "
            "they never merge. Decide which one stays, and start the others' nodes anew",
            alarming=True,
        )
    if not belonging:
        return None
    members = {node: where for answer in belonging for node, where in answer.members.items()}
    members |= {answer.node_id: answer.address for answer in belonging}
    voters = sorted({voter for answer in belonging for voter in answer.voters})
    founders = tuple(sorted(belonging[0].founders))
    generation = belonging[0].generation
    cluster_id = cluster_id_of(settings.cluster_name, founders, generation)
    return Join(cluster_id, founders, members, tuple(voters), generation)


def _claimed(
    settings: FoundingSettings, sight: Sight, formed: Join | Wait | None
) -> Join | Wait | None:
    """What the claim adds: that a cluster exists, also when nobody of it answers."""
    claim = sight.claim
    if claim is None or claim.cluster_id is None or isinstance(formed, Wait):
        return formed
    key = f"the key butterfly/{settings.cluster_name}/founding in Consul"
    if formed is None:
        return Wait(
            f"the cluster {claim.cluster_id} exists (founded by node {short(claim.candidate)}, "
            f"says the claim in Consul), and no member of it answers at {listed(sight.seeds)}"
            f"{_silent(sight.answers)}; start its nodes. Only if they are gone for good, "
            f"delete {key}",
            alarming=True,
        )
    if formed.cluster_id != claim.cluster_id:
        where = listed(answer.address for answer in sight.heard if answer.cluster_id)
        return Wait(
            f"there are 2 clusters under the name {settings.cluster_name!r}: {formed.cluster_id} "
            f"(at {where}) and {claim.cluster_id} (says the claim in Consul); if the second one "
            f"is gone for good, delete {key}",
            alarming=True,
        )
    return formed


def _found_or_wait(me: NodeId, settings: FoundingSettings, sight: Sight) -> Decision:
    others = [answer for answer in sight.heard if answer.node_id != me and not answer.lost_log]
    for answer in others:
        problem = _disagreement(settings, sight.seeds, answer)
        if problem is not None:
            return problem
    present = sorted({me, *(answer.node_id for answer in others)})
    expected, needed = len(set(sight.seeds)), promises_needed(settings, sight.seeds)
    if len(present) < needed:
        return Wait(
            f"{len(present)} of {expected} founders {listed(sight.seeds)} are up, "
            f"{needed} are needed{_silent(sight.answers)}"
            f"{_advice_on_names(settings, sight.seeds)}"
        )
    if settings.source == "consul" and sight.claim is not None:
        holding = _holding_the_claim(me, present, sight.claim, sight)
        if holding is not None:
            return holding
    elif present[0] != me:
        return Wait(f"node {short(present[0])} (smallest id) founds the cluster; waiting for it")
    left = settings.grace_seconds - sight.gathered_seconds
    if left > 0 and (settings.is_dynamic or len(present) < expected):
        rest = "others may come for" if len(present) == expected else "the others have"
        return Wait(
            f"{len(present)} of {expected} founders {listed(sight.seeds)} are up; {rest} "
            f"{left:.1f} s more{_silent(sight.answers)}"
        )
    if settings.source == "consul" and sight.claim is None:
        return TakeClaim(None)
    others_by_id = [node for node in present if node != me]
    return Found(tuple(sorted([me, *others_by_id[: settings.voters_max - 1]])))


def _holding_the_claim(
    me: NodeId, present: Sequence[NodeId], claim: Claim, sight: Sight
) -> Wait | TakeClaim | None:
    """None when this node holds it; otherwise whom to wait for, or that it is free again."""
    if claim.candidate == me:
        return None
    holder = short(claim.candidate)
    if claim.candidate in present:
        return Wait(f"node {holder} holds the claim in Consul and founds; waiting for it")
    left = CLAIM_GONE_SECONDS - sight.claim_silent_seconds
    if left > 0:
        return Wait(
            f"node {holder} holds the claim in Consul and does not answer at "
            f"{listed(sight.seeds)}; it is taken over in {left:.0f} s"
        )
    if present[0] != me:
        return Wait(
            f"node {short(present[0])} (smallest id) takes over the claim of node {holder}, "
            "which is gone; waiting for it"
        )
    return TakeClaim(claim)


def _disagreement(settings: FoundingSettings, seeds: Sequence[str], answer: WhoAmI) -> Wait | None:
    if answer.cluster_name != settings.cluster_name:
        return Wait(_other_name(settings, answer), alarming=True)
    if settings.is_dynamic and answer.quorum_size not in (0, settings.quorum_size):
        return Wait(
            f"the founders do not agree: quorum_size is {settings.quorum_size} here and "
            f"{answer.quorum_size} at {answer.address}; give both the same",
            alarming=True,
        )
    if set(answer.seeds) == set(seeds):
        return None
    if settings.is_dynamic and not answer.seeds:
        return Wait(f"{answer.address} does not know the founders yet; waiting for it")
    what = _LISTS[settings.source]
    advice = (
        f"waiting until it is the same; {settings.source} may show them different answers"
        if settings.is_dynamic
        else "give both the same list"
    )
    return Wait(
        f"the founders do not agree: {what} is {listed(seeds)} at this node and "
        f"{listed(answer.seeds)} at {answer.address}; {advice}",
        alarming=not settings.is_dynamic,
    )


def listed(addresses: Iterable[str]) -> str:
    """Addresses as they stand in a sentence."""
    return "[" + ", ".join(sorted(addresses)) + "]"


def _advice_on_names(settings: FoundingSettings, seeds: Sequence[str]) -> str:
    if not is_behind_a_name(settings, seeds):
        return ""
    return (
        f". This node's address {settings.address} is not in seed_nodes, and several nodes may "
        'answer to a name that is: use discovery_method = "dns" for such a name; for a name of '
        "its own, make it this node's advertise_address; or give one node the role coordinator"
    )


def _silent(answers: Answers) -> str:
    silent = [f"{seed}: {why}" for seed, why in sorted(answers.items()) if isinstance(why, str)]
    return f" (no answer from {'; '.join(silent)})" if silent else ""


def _other_name(settings: FoundingSettings, answer: WhoAmI) -> str:
    return (
        f"{answer.address} belongs to {answer.cluster_name!r}, this node to "
        f"{settings.cluster_name!r}; correct cluster_name or {_LISTS[settings.source]}"
    )
