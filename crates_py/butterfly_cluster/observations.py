"""What a coordinator sees, by which policy it decides, and what it may come to do. Pure data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from butterfly_cluster.commands import ActAsCoordinator, DescribeModel, Order
from butterfly_cluster.state import Member
from butterfly_core.ids import NodeId


@dataclass(frozen=True, slots=True)
class Policy:
    """How the coordinator decides; the configuration's words, in members and seconds."""

    quorum_size: int = 1
    dead_after_seconds: float = 3.0
    plan_grace_seconds: float = 1.0
    engine_grace_seconds: float = 60.0
    rebalance_when_idle: bool = True
    rebalance_after_seconds: float = 10.0
    demote_after_seconds: float = 30.0
    max_voters: int = 5
    replace_after_seconds: float = 10.0
    forget_dead_after_seconds: float = 86400.0
    switch_after_seconds: float = 10.0
    """So long answers under way may take to end before another model takes over."""


@dataclass(frozen=True, slots=True)
class Observations:
    """What the coordinator sees beside the log.

    ``silent_seconds``: since each member was last heard. ``settled_seconds``: since the set of
    live members and engines last changed, ``gathered_seconds`` of members alone.
    ``broken_seconds``: since the present epoch was first seen broken. ``term``: in which this
    node leads. ``considered``: engines that would change nothing in the epoch. ``described``: the
    model as this node reads it from the source. ``root_of``: the Merkle root of all parts'
    digests with the small files. ``caught_up``: learners that follow the log closely enough to
    vote. ``mute``: nodes whose disk failed, so that they cannot.
    ``witnesses``, ``cut_off``, ``refused``: as ``liveness.Signs`` has them, by member.
    ``may_plan``: False for a moment after a plan that could not be made.
    ``offered``, ``offered_root_of``: as ``described`` and ``root_of``, of the offered model.
    ``offer_ready_seconds``: since the offer was first seen ready. ``requests_late_seconds``: by so
    much ``active_requests`` may be behind.
    """

    silent_seconds: Mapping[NodeId, float]
    settled_seconds: float
    gathered_seconds: float
    voters: frozenset[NodeId]
    me: NodeId
    term: int
    active_requests: int = 0
    considered: frozenset[str] = frozenset()
    broken_seconds: float = 0.0
    described: DescribeModel | None = None
    root_of: Callable[[Mapping[str, str]], str] | None = None
    caught_up: frozenset[NodeId] = frozenset()
    mute: frozenset[NodeId] = frozenset()
    witnesses: Mapping[NodeId, frozenset[NodeId]] = field(default_factory=dict)
    cut_off: frozenset[NodeId] = frozenset()
    refused: frozenset[NodeId] = frozenset()
    may_plan: bool = True
    offered: DescribeModel | None = None
    offered_root_of: Callable[[Mapping[str, str]], str] | None = None
    offer_ready_seconds: float = 0.0
    requests_late_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Act:
    """Let it be committed that this node gives the orders from now on."""

    command: ActAsCoordinator


@dataclass(frozen=True, slots=True)
class Propose:
    """To be proposed as ``Ordered`` by who acts."""

    command: Order


@dataclass(frozen=True, slots=True)
class MakePlan:
    """Place all layers on these members' engines, as this epoch."""

    epoch: int
    machines: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class PlanOffer:
    """Place the offered model on these members' engines, beside what they hold."""

    number: int
    machines: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Promote:
    """Make a learner a voter."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class Demote:
    """Make a voter a learner."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class HandOver:
    """Let another voter lead: this one shall not vote any more."""


Duty = Act | Propose | MakePlan | PlanOffer | Promote | Demote | HandOver
