"""Puts together what the nodes of a pipeline tell about their weights' digests. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from butterfly_cluster.state import AssignedStage
from butterfly_core.ids import NodeId
from butterfly_core.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Conflict:
    """A node's digest of a part is not the one that is known, which no ``other`` node told, or
    not the one that the other told."""

    part: str
    node_id: NodeId
    seen: str
    expected: str
    other: NodeId | None


def put_together(
    known: Mapping[str, str],
    reports: Mapping[NodeId, Mapping[str, str]],
    stages: Iterable[AssignedStage],
    spec: ModelSpec,
) -> dict[str, str] | Conflict:
    """The digests of all parts that are known or told by now, or the first conflict among them.
    A part that a node leaves out of its report is one."""
    together = dict(known)
    told_by: dict[str, NodeId] = {}
    for stage in stages:
        reported = reports.get(stage.node_id)
        if reported is None:
            continue
        for part in spec.parts_of(stage.layers):
            seen = reported.get(part)
            expected = together.setdefault(part, seen or "none")
            if seen != expected:
                other = told_by.get(part)
                return Conflict(part, stage.node_id, seen or "none", expected, other)
            told_by[part] = stage.node_id
    return together
