"""How a cluster is born once, and how a node finds the one that is there. Pure.

A cluster is born by durable promises of a majority of its expected founders: the entries of
``seed_nodes``. The founder with the smallest id among those that are up asks for the
promises. A node promises once; two majorities of one list share a node, so two births would
need one node to promise twice. A promise binds until the candidate itself has dropped the
proposal, on its own disk, without having founded with it.

A node founds only when its own address is in its list, or when its list is empty and its
role is coordinator. Everybody else waits for a cluster and joins it as a learner.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from butterfly_cluster.founding_messages import Proposal, Verdict, WhoAmI, cluster_id_of
from butterfly_core.errors import ConfigError
from butterfly_core.ids import ClusterId, NodeId, short


@dataclass(frozen=True, slots=True)
class FoundingSettings:
    """What the configuration says; addresses as ``host:port``."""

    cluster_name: str
    address: str
    seeds: tuple[str, ...]
    role: Literal["worker", "coordinator"] = "worker"
    voters_max: int = 5
    grace_seconds: float = 5.0


# What a node that belongs nowhere should do now.


@dataclass(frozen=True, slots=True)
class Join:
    """There is a cluster: belong to it."""

    cluster_id: ClusterId
    founders: tuple[NodeId, ...]
    members: Mapping[NodeId, str]
    voters: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """Collect promises for these voters; alone, no other promise is needed."""

    voters: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again later; the reason is for the status page."""

    reason: str
    alarming: bool = False


Decision = Join | Found | Wait
Answers = Mapping[str, WhoAmI | str]
"""By seed address: the answer, or why there is none."""


def majority_of(settings: FoundingSettings) -> int:
    """How many promises make a cluster."""
    return len(set(settings.seeds)) // 2 + 1


def may_found(me: NodeId, settings: FoundingSettings, answers: Answers) -> bool:
    """True when this node is one of its own seeds, by address or because it answered there."""
    if not settings.seeds:
        return settings.role == "coordinator"
    if settings.address in settings.seeds:
        return True
    return any(isinstance(heard, WhoAmI) and heard.node_id == me for heard in answers.values())


def decide(
    me: NodeId, settings: FoundingSettings, answers: Answers, majority_seen_seconds: float
) -> Decision:
    """What to do, given what the seeds answered.

    ``majority_seen_seconds``: for how long a majority of the founders has been in sight.
    Raises ConfigError when waiting can never help.
    """
    if not settings.seeds:
        if settings.role == "coordinator":
            return Found((me,))
        raise ConfigError(
            "seed_nodes is empty: a worker joins through a seed; name at least one node, "
            "or give one node the role coordinator"
        )
    heard = [answer for answer in answers.values() if isinstance(answer, WhoAmI)]
    found = _formed(settings, heard)
    if found is not None:
        return found
    if not may_found(me, settings, answers):
        return Wait(
            f"no seed of {_listed(settings.seeds)} belongs to a cluster yet"
            f"{_silent(answers)}; this node's address {settings.address} is not in the list, "
            "so it joins and never founds"
        )
    return _found_or_wait(me, settings, answers, heard, majority_seen_seconds)


def _formed(settings: FoundingSettings, heard: Sequence[WhoAmI]) -> Join | Wait | None:
    formed = [answer for answer in heard if answer.cluster_id is not None]
    for answer in formed:
        if answer.cluster_name != settings.cluster_name:
            return Wait(_other_name(settings, answer), alarming=True)
        if answer.cluster_id != cluster_id_of(answer.cluster_name, answer.founders):
            return Wait(
                f"{answer.address} names the cluster {answer.cluster_id}, which does not fit "
                "its first voters; is it of another version?",
                alarming=True,
            )
    ids = {str(answer.cluster_id): answer.address for answer in formed}
    if len(ids) > 1:
        named = ", ".join(f"{name} (at {address})" for name, address in sorted(ids.items()))
        return Wait(
            f"there are {len(ids)} clusters under the name {settings.cluster_name!r}: {named}; "
            "they never merge. Decide which one stays, and start the others' nodes anew",
            alarming=True,
        )
    if not formed:
        return None
    members = {node: where for answer in formed for node, where in answer.members.items()}
    members |= {answer.node_id: answer.address for answer in formed}
    voters = sorted({voter for answer in formed for voter in answer.voters})
    founders = tuple(sorted(formed[0].founders))
    cluster_id = cluster_id_of(settings.cluster_name, founders)
    return Join(cluster_id, founders, members, tuple(voters))


def _found_or_wait(
    me: NodeId,
    settings: FoundingSettings,
    answers: Answers,
    heard: Sequence[WhoAmI],
    majority_seen_seconds: float,
) -> Decision:
    for answer in heard:
        problem = _disagreement(settings, answer)
        if answer.node_id != me and problem is not None:
            return Wait(problem, alarming=True)
    present = sorted({me, *(answer.node_id for answer in heard)})
    expected, needed = len(set(settings.seeds)), majority_of(settings)
    if len(present) < needed:
        return Wait(
            f"{len(present)} of {expected} founders {_listed(settings.seeds)} are up, "
            f"{needed} are needed{_silent(answers)}"
        )
    if present[0] != me:
        return Wait(f"node {short(present[0])} (smallest id) founds the cluster; waiting for it")
    if len(present) < expected and majority_seen_seconds < settings.grace_seconds:
        return Wait(
            f"{len(present)} of {expected} founders are up; the others have "
            f"{settings.grace_seconds - majority_seen_seconds:.1f} s more{_silent(answers)}"
        )
    return Found(tuple(present[: settings.voters_max]))


def _disagreement(settings: FoundingSettings, answer: WhoAmI) -> str | None:
    if answer.cluster_name != settings.cluster_name:
        return _other_name(settings, answer)
    if set(answer.seeds) != set(settings.seeds):
        return (
            f"the founders do not agree: this node's seed_nodes is {_listed(settings.seeds)}, "
            f"that of {answer.address} is {_listed(answer.seeds)}; give both the same list"
        )
    return None


def consider(
    proposal: Proposal,
    me: NodeId,
    settings: FoundingSettings,
    *,
    cluster_id: ClusterId | None,
    promise: Proposal | None,
) -> Verdict:
    """May this node promise? The caller writes a granted promise down before it answers."""
    if proposal.cluster_name != settings.cluster_name:
        return Verdict(
            False, f"this node is of {settings.cluster_name!r}, not {proposal.cluster_name!r}"
        )
    if cluster_id is not None:
        return Verdict(False, f"this node belongs to the cluster {cluster_id} already")
    if set(proposal.seeds) != set(settings.seeds):
        return Verdict(
            False,
            f"the founders do not agree: {short(proposal.candidate)} lists "
            f"{_listed(proposal.seeds)}, {settings.address} lists {_listed(settings.seeds)}",
        )
    if promise is None or promise.candidate == proposal.candidate:
        return Verdict(True, "promised")
    if promise.candidate == me and proposal.candidate < me:
        return Verdict(True, "promised; this node drops its own proposal")
    return Verdict(False, f"promised to {short(promise.candidate)} already")


def is_released(promise: Proposal, answers: Answers) -> bool:
    """True when the candidate itself shows that it dropped the proposal without founding."""
    for answer in answers.values():
        if isinstance(answer, WhoAmI) and answer.node_id == promise.candidate:
            return answer.cluster_id is None and answer.promised_number != promise.number
    return False


def _listed(addresses: Iterable[str]) -> str:
    return "[" + ", ".join(sorted(addresses)) + "]"


def _silent(answers: Answers) -> str:
    silent = [f"{seed}: {why}" for seed, why in sorted(answers.items()) if isinstance(why, str)]
    return f" (no answer from {'; '.join(silent)})" if silent else ""


def _other_name(settings: FoundingSettings, answer: WhoAmI) -> str:
    return (
        f"{answer.address} belongs to {answer.cluster_name!r}, this node to "
        f"{settings.cluster_name!r}; correct cluster_name or seed_nodes"
    )
