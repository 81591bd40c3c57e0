"""What a node tells its engine to hold. Pure."""

from butterfly.channel import Load, ModelSource
from butterfly.handover import encode_checkpoint
from butterfly_core.ids import NodeId
from butterfly_core.model import ModelSpec
from butterfly_weights.checkpoint import Checkpoint


def load_order(
    epoch: int,
    model: ModelSpec,
    source: ModelSource,
    checkpoint: Checkpoint,
    *,
    layers: tuple[int, int],
    kv_tokens: int,
    stages: int,
    repinned_epoch: int,
    node: NodeId,
    forget: bool = False,
) -> Load:
    """The layers [start, stop) of a model; what is held of it from before its pinned root was given
    up is another one."""
    start, stop = layers
    return Load(
        epoch=epoch,
        model=f"{model.identity}#{repinned_epoch}",
        source=source,
        checkpoint=encode_checkpoint(checkpoint),
        start=start,
        stop=stop,
        layer_count=model.layer_count,
        tied=model.tied,
        kv_tokens=kv_tokens,
        stages=stages,
        forget=forget,
        node=node,
    )
