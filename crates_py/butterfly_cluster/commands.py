"""The closed set of things a cluster can agree on, and their form in the log (JSON).

A command is a wish until it is committed; ``apply`` decides what it changes, and rejects
what is stale. Commands are idempotent: proposing one twice is harmless.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from butterfly_cluster.offer_commands import (
    CallOffOffer,
    Digest,
    OfferModel,
    OfferOrder,
    OfferReport,
)
from butterfly_cluster.state import Acting, AssignedStage, Role
from butterfly_core.address import Address
from butterfly_core.errors import ProtocolViolation
from butterfly_core.hardware import Capacity
from butterfly_core.ids import NodeId, parse_node_id
from butterfly_core.model import ModelSpec

COMMAND_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class RegisterMember:
    """A node is up, and where it is reached."""

    node_id: NodeId
    address: Address
    http_address: Address
    role: Role
    version: str
    carries_layers: bool = True
    zone: str = ""
    kind: Literal["register_member"] = "register_member"


@dataclass(frozen=True, slots=True)
class ReportEngine:
    """A node's engine runs and was measured; or (None, None) it is gone."""

    node_id: NodeId
    engine: str | None
    capacity: Capacity | None
    kind: Literal["report_engine"] = "report_engine"


@dataclass(frozen=True, slots=True)
class MarkDown:
    """A member is judged dead; it comes back by registering again."""

    node_id: NodeId
    reason: str
    kind: Literal["mark_down"] = "mark_down"


@dataclass(frozen=True, slots=True)
class RemoveMember:
    """A member left for good."""

    node_id: NodeId
    reason: str
    kind: Literal["remove_member"] = "remove_member"


@dataclass(frozen=True, slots=True)
class DescribeModel:
    """What is to be served; ``part_digests`` are the manifest's (empty without one)."""

    spec: ModelSpec
    part_digests: Mapping[str, Digest]
    kind: Literal["describe_model"] = "describe_model"


@dataclass(frozen=True, slots=True)
class AssignLayers:
    """A new placement of all layers."""

    epoch: int
    stages: tuple[AssignedStage, ...]
    kv_tokens: int
    model: str
    considered: tuple[str, ...]
    kind: Literal["assign_layers"] = "assign_layers"


@dataclass(frozen=True, slots=True)
class ReportPlanProblem:
    """Why no placement can be made; None when that is over."""

    message: str | None
    kind: Literal["report_plan_problem"] = "report_plan_problem"


@dataclass(frozen=True, slots=True)
class ReportDigests:
    """What a node computed from the weights it holds now."""

    epoch: int
    node_id: NodeId
    part_digests: Mapping[str, Digest]
    kind: Literal["report_digests"] = "report_digests"


@dataclass(frozen=True, slots=True)
class ReportFailure:
    """A node could not load its layers; it goes on trying."""

    epoch: int
    node_id: NodeId
    message: str
    code: str = "load_failed"
    file: str | None = None
    tensor: str | None = None
    kind: Literal["report_failure"] = "report_failure"


@dataclass(frozen=True, slots=True)
class RejectDigests:
    """A node's digests are not the model's."""

    epoch: int
    node_id: NodeId
    reason: str
    kind: Literal["reject_digests"] = "reject_digests"


@dataclass(frozen=True, slots=True)
class PassValidation:
    """All leaves of the epoch match this root."""

    epoch: int
    root: str
    kind: Literal["pass_validation"] = "pass_validation"


@dataclass(frozen=True, slots=True)
class ReportWarm:
    """The head got a warm-up answer through every stage of the epoch."""

    epoch: int
    node_id: NodeId
    kind: Literal["report_warm"] = "report_warm"


@dataclass(frozen=True, slots=True)
class ReportBroken:
    """A node saw the epoch's pipeline break though all members look alive."""

    epoch: int
    node_id: NodeId
    reason: str
    kind: Literal["report_broken"] = "report_broken"


@dataclass(frozen=True, slots=True)
class Repin:
    """A person gives up the root that was pinned: all nodes load anew, and what they find alike
    is pinned. It may be handed in at any node."""

    root: str
    kind: Literal["repin"] = "repin"


Order = (
    MarkDown
    | RemoveMember
    | DescribeModel
    | AssignLayers
    | ReportPlanProblem
    | RejectDigests
    | PassValidation
    | OfferOrder
)
"""What a coordinator decides. A node removes itself as well, when it leaves."""


@dataclass(frozen=True, slots=True)
class ActAsCoordinator:
    """The node leads in this term, and begins to give orders."""

    by: Acting
    kind: Literal["act_as_coordinator"] = "act_as_coordinator"


@dataclass(frozen=True, slots=True)
class Ordered:
    """A coordinator's order; it counts only while that node acts in that term."""

    by: Acting
    order: Annotated[Order, Field(discriminator="kind")]
    kind: Literal["ordered"] = "ordered"


Report = (
    RegisterMember
    | ReportEngine
    | ReportDigests
    | ReportFailure
    | ReportWarm
    | ReportBroken
    | OfferReport
)
"""What a node says of itself."""

Wish = Repin | OfferModel | CallOffOffer
"""What a person wants; any node hands it in."""

Command = ActAsCoordinator | Ordered | Order | Report | Wish

_ADAPTER: TypeAdapter[Command] = TypeAdapter(Annotated[Command, Field(discriminator="kind")])


def encode_command(command: Command) -> bytes:
    """The command as JSON. Raises ProtocolViolation above COMMAND_BYTES_MAX."""
    data = _ADAPTER.dump_json(command)
    if len(data) > COMMAND_BYTES_MAX:
        raise ProtocolViolation(
            f"a {command.kind} command of {len(data)} bytes is above {COMMAND_BYTES_MAX}"
        )
    return data


def decode_command(data: bytes) -> Command:
    """The command in these bytes. Raises ProtocolViolation for anything else."""
    try:
        return _ADAPTER.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise ProtocolViolation(
            f"not a command: {where}: {first['msg']}, not {str(first['input'])[:60]!r}{_by(data)}"
        ) from error


def _by(data: bytes) -> str:
    """Whose it is, when it says so."""
    try:
        return f" (of node {parse_node_id(json.loads(data)['node_id'])})"
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
