"""What a cluster says of another model that is to take over while the present one serves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from butterfly_cluster.state import AssignedStage, ModelPlace
from butterfly_core.ids import NodeId
from butterfly_core.model import ModelSpec

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""BLAKE3-256 in hexadecimal; looked at when a command is read, by every node alike."""


@dataclass(frozen=True, slots=True)
class OfferModel:
    """A person wants the model at this place served. ``number`` is one more than that of the
    newest offer, so that of two at once one counts. It may be handed in at any node."""

    number: int
    place: ModelPlace
    kind: Literal["offer_model"] = "offer_model"


@dataclass(frozen=True, slots=True)
class CallOffOffer:
    """A person does not want it any more. It may be handed in at any node."""

    number: int
    kind: Literal["call_off_offer"] = "call_off_offer"


@dataclass(frozen=True, slots=True)
class PrepareModel:
    """The offer, read and planned: these stages load it beside what they hold. ``place`` names
    one version where the offer left that open, as a hub's branch does."""

    number: int
    place: ModelPlace
    spec: ModelSpec
    part_digests: Mapping[str, Digest]
    stages: tuple[AssignedStage, ...]
    kv_tokens: int
    considered: tuple[str, ...]
    kind: Literal["prepare_model"] = "prepare_model"


@dataclass(frozen=True, slots=True)
class SwitchModel:
    """All stages hold the offered model, whose weights have this root: it is the model from
    here on, in this epoch."""

    number: int
    epoch: int
    root: Digest
    kind: Literal["switch_model"] = "switch_model"


@dataclass(frozen=True, slots=True)
class WithdrawModel:
    """The offer came to nothing; the present model goes on as if it had not been made."""

    number: int
    reason: str
    kind: Literal["withdraw_model"] = "withdraw_model"


@dataclass(frozen=True, slots=True)
class ReportPrepared:
    """What a node computed from the weights that it holds of the offer."""

    number: int
    node_id: NodeId
    part_digests: Mapping[str, Digest]
    kind: Literal["report_prepared"] = "report_prepared"


@dataclass(frozen=True, slots=True)
class ReportUnprepared:
    """A node cannot read or load the offer, which ends it."""

    number: int
    node_id: NodeId
    message: str
    kind: Literal["report_unprepared"] = "report_unprepared"


OfferOrder = PrepareModel | SwitchModel | WithdrawModel
OfferReport = ReportPrepared | ReportUnprepared
