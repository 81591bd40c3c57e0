"""What a quorum has agreed: the one replicated state, frozen.

``apply`` is its only way to change. Nothing per token, per heartbeat or per progress tick is
in here. Everything about an assignment belongs to its epoch; a new epoch starts it afresh.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from butterfly_core.address import Address
from butterfly_core.errors import InvalidValue
from butterfly_core.hardware import Capacity
from butterfly_core.ids import NodeId
from butterfly_core.layers import LayerRange
from butterfly_core.model import ModelSpec

Role = Literal["worker", "coordinator"]


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the cluster. ``engine`` names the run of its engine process that the
    capacity was measured in; None while no engine runs. ``zone`` names what fails together,
    as a rack or a building; empty when nobody said."""

    node_id: NodeId
    address: Address
    http_address: Address
    role: Role
    version: str
    carries_layers: bool = True
    alive: bool = True
    engine: str | None = None
    capacity: Capacity | None = None
    joined_index: int = 0
    zone: str = ""


@dataclass(frozen=True, slots=True)
class AssignedStage:
    """Contiguous layers given to one run of one node's engine."""

    node_id: NodeId
    engine: str
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class Assignment:
    """One placement of all layers, in pipeline order; the first stage is the head.

    ``model`` is the ``ModelSpec.identity`` of the weights it is for. ``considered`` are the
    engines that the plan knew of, so that a machine that was left out on purpose does not
    cause another plan.
    """

    epoch: int
    stages: tuple[AssignedStage, ...]
    kv_tokens: int
    model: str
    considered: tuple[str, ...] = ()

    def stage_of(self, node_id: NodeId) -> AssignedStage | None:
        return next((stage for stage in self.stages if stage.node_id == node_id), None)

    @property
    def head(self) -> NodeId:
        return self.stages[0].node_id


@dataclass(frozen=True, slots=True)
class Failure:
    """What kept a node from holding its layers, for a person to read."""

    node_id: NodeId
    message: str
    code: str = "load_failed"
    file: str | None = None
    tensor: str | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """Digests that were not accepted; ``count`` rises with each time in this epoch."""

    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Acting:
    """Who may give orders: the node that leads in this term."""

    term: int
    node_id: NodeId


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """Where a model lies, for every node alike; the words of the ``[model]`` section."""

    source_type: str
    source_path: str
    endpoint_url: str | None = None
    region: str | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.source_type}:{self.source_path}"


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """A model that is to take over from the one that serves in ``epoch``.

    It has a ``spec`` and ``stages`` once it is planned, and is ready when every stage has told its
    digests. It ends in one of two ways: ``withdrawn`` says why the old model goes on, and
    ``switched_epoch`` is the first one of the new model.
    """

    number: int
    place: ModelPlace
    epoch: int
    spec: ModelSpec | None = None
    part_digests: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[AssignedStage, ...] = ()
    kv_tokens: int = 0
    considered: tuple[str, ...] = ()
    prepared: Mapping[NodeId, Mapping[str, str]] = field(default_factory=dict)
    withdrawn: str | None = None
    switched_epoch: int = 0

    @property
    def is_open(self) -> bool:
        return self.withdrawn is None and not self.switched_epoch

    @property
    def is_ready(self) -> bool:
        """True when nothing is missing but the switch: requests wait for it from here on."""
        told = self.prepared.keys()
        return self.is_open and bool(self.stages) and {s.node_id for s in self.stages} <= told

    def stage_of(self, node_id: NodeId) -> AssignedStage | None:
        return next((stage for stage in self.stages if stage.node_id == node_id), None)


@dataclass(frozen=True, slots=True)
class ClusterState:
    """Everything committed. ``index`` is the log index it was read at; ``departed`` left for
    good and may be voters still; ``acting`` is the one coordinator whose orders count. In
    ``repinned_epoch`` a pinned root was given up: what is held of it counts no more.
    ``source`` is where the model lies; None: where each node's ``[model]`` section says.
    ``offer`` is the newest one, also when it has ended."""

    members: Mapping[NodeId, Member] = field(default_factory=dict)
    departed: tuple[NodeId, ...] = ()
    model: ModelSpec | None = None
    part_digests: Mapping[str, str] = field(default_factory=dict)
    pinned_root: str | None = None
    assignment: Assignment | None = None
    plan_problem: str | None = None
    digests: Mapping[NodeId, Mapping[str, str]] = field(default_factory=dict)
    rejections: Mapping[NodeId, Rejection] = field(default_factory=dict)
    failures: Mapping[NodeId, Failure] = field(default_factory=dict)
    validated_epoch: int = 0
    validated_root: str | None = None
    active_epoch: int = 0
    broken_epoch: int = 0
    broken_reason: str | None = None
    broken_by: NodeId | None = None
    broken_in_a_row: int = 0
    repinned_epoch: int = 0
    acting: Acting | None = None
    index: int = 0
    source: ModelPlace | None = None
    offer: ModelOffer | None = None

    @property
    def epoch(self) -> int:
        return self.assignment.epoch if self.assignment else 0

    @property
    def open_offer(self) -> ModelOffer | None:
        """The offer that is neither withdrawn nor switched to."""
        return self.offer if self.offer is not None and self.offer.is_open else None

    @property
    def live(self) -> tuple[Member, ...]:
        """Members that are up, oldest first."""
        up = (member for member in self.members.values() if member.alive)
        return tuple(sorted(up, key=lambda member: (member.joined_index, member.node_id)))

    @property
    def is_intact(self) -> bool:
        """True when every stage lives in the engine it was given to, and the links hold."""
        if self.assignment is None or self.broken_epoch == self.epoch:
            return False
        return all(map(self.lives, self.assignment.stages))

    def lives(self, stage: AssignedStage) -> bool:
        """True when the engine that the stage was given to still runs."""
        member = self.members.get(stage.node_id)
        return member is not None and member.alive and member.engine == stage.engine

    @property
    def is_active(self) -> bool:
        """True when the present assignment is proven, warmed up and unbroken."""
        return 0 < self.active_epoch == self.epoch and self.is_intact


_ADAPTER = TypeAdapter(ClusterState)


def encode_state(state: ClusterState) -> bytes:
    """JSON for a snapshot."""
    return _ADAPTER.dump_json(state)


def decode_state(data: bytes) -> ClusterState:
    """The state of a snapshot. Raises InvalidValue for anything else."""
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise InvalidValue(
            f"not a state that this version knows: {where}: {first['msg']}"
        ) from error
