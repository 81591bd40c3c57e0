"""What nodes tell each other before there is a cluster: who they are, what they promise. Pure."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from butterfly_core.errors import InvalidValue
from butterfly_core.ids import ClusterId, NodeId, parse_node_id

TEXT_MAX = 256
LIST_MAX = 4096


def cluster_id_of(cluster_name: str, voters: Sequence[NodeId], generation: int = 0) -> ClusterId:
    """Hash of the first configuration: SHA-256 of its canonical JSON, first 128 bits.

    ``generation`` counts recoveries from a lost majority; each makes another cluster.
    """
    recovered = [generation] if generation else []
    configuration = json.dumps(["butterfly cluster 1", cluster_name, sorted(voters), *recovered])
    return ClusterId(hashlib.sha256(configuration.encode()).hexdigest()[:32])


@dataclass(frozen=True, slots=True)
class WhoAmI:
    """A node's answer to "who are you?"."""

    node_id: NodeId
    cluster_name: str
    address: str
    cluster_id: ClusterId | None = None
    founders: tuple[NodeId, ...] = ()
    voters: tuple[NodeId, ...] = ()
    members: Mapping[NodeId, str] = field(default_factory=dict)
    seeds: tuple[str, ...] = ()
    promised_to: NodeId | None = None
    promised_number: str | None = None
    generation: int = 0
    quorum_size: int = 0
    """As configured there; 0 when it was not said."""
    lost_log: bool = False
    """It can neither found nor promise: it does not know what it promised before."""

    def to_map(self) -> dict[str, Any]:
        """For the wire."""
        return {
            "node_id": self.node_id,
            "cluster_name": self.cluster_name,
            "address": self.address,
            "cluster_id": self.cluster_id,
            "founders": list(self.founders),
            "generation": self.generation,
            "voters": list(self.voters),
            "members": dict(self.members),
            "seeds": list(self.seeds),
            "promised_to": self.promised_to,
            "promised_number": self.promised_number,
            "quorum_size": self.quorum_size,
            "lost_log": self.lost_log,
        }


@dataclass(frozen=True, slots=True)
class Proposal:
    """A first configuration that a candidate wants; ``number`` is random, one per attempt."""

    cluster_name: str
    seeds: tuple[str, ...]
    voters: tuple[NodeId, ...]
    candidate: NodeId
    number: str

    @property
    def cluster_id(self) -> ClusterId:
        """The id of the cluster it would found."""
        return cluster_id_of(self.cluster_name, self.voters)

    def to_map(self) -> dict[str, Any]:
        """For the wire and the disk."""
        return {
            "cluster_name": self.cluster_name,
            "seeds": list(self.seeds),
            "voters": list(self.voters),
            "candidate": self.candidate,
            "number": self.number,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """A node's answer to a proposal."""

    granted: bool
    reason: str

    def to_map(self) -> dict[str, Any]:
        """For the wire."""
        return {"granted": self.granted, "reason": self.reason}


def whoami_from_map(fields: Mapping[str, Any]) -> WhoAmI:
    """Read a peer's answer. Raises InvalidValue."""
    try:
        cluster_id, promised_to = fields["cluster_id"], fields["promised_to"]
        return WhoAmI(
            node_id=parse_node_id(fields["node_id"]),
            cluster_name=_text(fields["cluster_name"]),
            address=_text(fields["address"]),
            cluster_id=None if cluster_id is None else ClusterId(parse_node_id(cluster_id)),
            founders=_ids(fields["founders"]),
            voters=_ids(fields["voters"]),
            members={parse_node_id(k): _text(v) for k, v in _few(fields["members"].items())},
            seeds=_texts(fields["seeds"]),
            promised_to=None if promised_to is None else parse_node_id(promised_to),
            promised_number=fields["promised_number"] and _text(fields["promised_number"]),
            generation=_count(fields.get("generation", 0)),
            quorum_size=_count(fields.get("quorum_size", 0)),
            lost_log=_flag(fields.get("lost_log", False)),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidValue(f"not an answer to whoami: {error!r}") from error


def proposal_from_map(fields: Mapping[str, Any]) -> Proposal:
    """Read a proposal. Raises InvalidValue."""
    try:
        return Proposal(
            cluster_name=_text(fields["cluster_name"]),
            seeds=_texts(fields["seeds"]),
            voters=_ids(fields["voters"]),
            candidate=parse_node_id(fields["candidate"]),
            number=_text(fields["number"]),
        )
    except (KeyError, TypeError) as error:
        raise InvalidValue(f"not a proposal: {error!r}") from error


def verdict_from_map(fields: Mapping[str, Any]) -> Verdict:
    """Read a verdict. Raises InvalidValue."""
    granted, reason = fields.get("granted"), fields.get("reason")
    if not isinstance(granted, bool):
        raise InvalidValue("a verdict says granted: true or false")
    return Verdict(granted, _text(reason))


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > TEXT_MAX:
        raise InvalidValue(f"a text of at most {TEXT_MAX} characters, not {str(value)[:60]!r}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidValue(f"true or false, not {str(value)[:60]!r}")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LIST_MAX:
        raise InvalidValue(f"a count from 0 to {LIST_MAX}, not {str(value)[:60]!r}")
    return value


def _texts(values: Any) -> tuple[str, ...]:
    return tuple(_text(value) for value in _few(values))


def _ids(values: Any) -> tuple[NodeId, ...]:
    return tuple(parse_node_id(_text(value)) for value in _few(values))


def _few(values: Iterable[Any]) -> list[Any]:
    few = list(islice(values, LIST_MAX + 1))
    if len(few) > LIST_MAX or isinstance(values, str | bytes):
        raise InvalidValue(f"a list of at most {LIST_MAX}, not {str(values)[:60]!r}")
    return few
