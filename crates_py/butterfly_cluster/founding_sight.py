"""What a node on its way into a cluster is told, sees, and may decide. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from butterfly_cluster.claims import Claim
from butterfly_cluster.founding_messages import WhoAmI
from butterfly_core.ids import ClusterId, NodeId

SourceName = Literal["static", "dns", "multicast", "consul"]


@dataclass(frozen=True, slots=True)
class FoundingSettings:
    """What the configuration says; ``address`` is this node's, as ``host:port``."""

    cluster_name: str
    address: str
    source: SourceName = "static"
    quorum_size: int = 1
    role: Literal["worker", "coordinator"] = "worker"
    voters_max: int = 5
    grace_seconds: float = 5.0

    @property
    def is_dynamic(self) -> bool:
        """True when the list of founders is not written by a person on every node."""
        return self.source != "static"


@dataclass(frozen=True, slots=True)
class Formation:
    """The cluster this node belongs to.

    ``voters`` is its first configuration, for ``RaftNode(voters=...)``; ``members`` is where
    nodes were said to be when this node joined (empty after a restart: ask the state).
    """

    cluster_id: ClusterId
    voters: frozenset[NodeId]
    learner: bool
    members: Mapping[NodeId, str]


Answers = Mapping[str, WhoAmI | str]
"""By address: the answer, or why there is none."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What a node that belongs nowhere sees in one round.

    ``seeds``: the expected founders. ``gathered_seconds``: for how long enough of them have
    been in sight, with this list. ``claim_silent_seconds``: for how long the claim's node has
    not answered.
    """

    seeds: tuple[str, ...]
    answers: Answers
    gathered_seconds: float = 0.0
    claim: Claim | None = None
    claim_silent_seconds: float = 0.0

    @property
    def heard(self) -> list[WhoAmI]:
        """Who answered."""
        return [answer for answer in self.answers.values() if isinstance(answer, WhoAmI)]


# What a node that belongs nowhere should do now.


@dataclass(frozen=True, slots=True)
class Join:
    """There is a cluster: belong to it."""

    cluster_id: ClusterId
    founders: tuple[NodeId, ...]
    members: Mapping[NodeId, str]
    voters: tuple[NodeId, ...]
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """Collect promises for these voters; alone, no other promise is needed."""

    voters: tuple[NodeId, ...]


@dataclass(frozen=True, slots=True)
class TakeClaim:
    """Write this node into the registry as the one that founds, then look again."""

    replacing: Claim | None


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again later; the reason is for the status page."""

    reason: str
    alarming: bool = False


Decision = Join | Found | TakeClaim | Wait
