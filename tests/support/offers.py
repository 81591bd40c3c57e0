"""A model that is offered to a small cluster, step by step."""

from dataclasses import replace
from typing import Any

from butterfly_cluster.offer_commands import OfferModel, PrepareModel, ReportPrepared, SwitchModel
from butterfly_cluster.state import AssignedStage, ModelPlace
from butterfly_core.layers import LayerRange, stage_parts
from tests.support.clusters import LAYERS, active, committed, digest_of, engine, node, spec

PLACE = ModelPlace("s3", "s3://models/b", "http://127.0.0.1:9000", None, "tiny")
ROOT = digest_of("root of b")
STAGES = (
    AssignedStage(node(1), engine(1), LayerRange(0, 1)),
    AssignedStage(node(2), engine(2), LayerRange(1, LAYERS)),
)


def digests_of(stage: AssignedStage, salt: str = "b") -> dict[str, str]:
    parts = stage_parts(stage.layers, LAYERS, tied=False)
    return {part: digest_of(part + salt) for part in parts}


def prepare(number: int = 1, **changes: Any) -> PrepareModel:
    new = PrepareModel(number, PLACE, spec("r2", ROOT), {}, STAGES, 32, (engine(1), engine(2)))
    return replace(new, **changes)


def prepared(stage: AssignedStage, salt: str = "b") -> ReportPrepared:
    return ReportPrepared(1, stage.node_id, digests_of(stage, salt))


OFFERED = committed([OfferModel(1, PLACE)], active(2))
PREPARING = committed([prepare()], OFFERED)
READY = committed([prepared(stage) for stage in STAGES], PREPARING)
SWITCH = SwitchModel(1, 2, ROOT)
