"""Small committed states for tests of the pure half of the cluster."""

import hashlib
from collections.abc import Sequence

from butterfly_cluster.apply import apply
from butterfly_cluster.commands import (
    AssignLayers,
    Command,
    DescribeModel,
    PassValidation,
    RegisterMember,
    ReportDigests,
    ReportEngine,
    ReportWarm,
)
from butterfly_cluster.state import AssignedStage, ClusterState
from butterfly_core.address import Address
from butterfly_core.hardware import Capacity
from butterfly_core.ids import NodeId
from butterfly_core.layers import LayerRange, all_parts, stage_parts
from butterfly_core.model import ModelSpec

CAPACITY = Capacity("cpu", "test", 1 << 30, 1 << 31, 1e10, 1e11)
LAYERS = 4


def node(number: int) -> NodeId:
    return NodeId(f"{number:032x}")


def spec(revision: str = "r1", manifest_root: str | None = None) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        architecture="LlamaForCausalLM",
        layer_count=LAYERS,
        hidden_size=8,
        vocab_size=32,
        context_length=64,
        dtype="float32",
        tied=False,
        kv_bytes_per_token=64,
        part_bytes=dict.fromkeys(all_parts(LAYERS), 100),
        revision=revision,
        manifest_root=manifest_root,
    )


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def registered(number: int) -> RegisterMember:
    return RegisterMember(
        node(number), Address("127.0.0.1", 7000 + number), Address("127.0.0.1", 8000), "worker", "0"
    )


def engine(number: int) -> str:
    return f"engine-{number}"


def committed(commands: Sequence[Command], state: ClusterState | None = None) -> ClusterState:
    state = state or ClusterState()
    for command in commands:
        state = apply(state, state.index + 1, command)
    return state


def joined(count: int) -> list[Command]:
    return [
        command
        for number in range(1, count + 1)
        for command in (registered(number), ReportEngine(node(number), engine(number), CAPACITY))
    ]


def assigned(epoch: int, numbers: Sequence[int], model: str = "r1") -> AssignLayers:
    """The layers split evenly over some nodes."""
    share = LAYERS // len(numbers)
    bounds = [share * i for i in range(len(numbers))] + [LAYERS]
    stages = tuple(
        AssignedStage(node(number), engine(number), LayerRange(bounds[i], bounds[i + 1]))
        for i, number in enumerate(numbers)
    )
    return AssignLayers(epoch, stages, 64, model, tuple(engine(number) for number in numbers))


def digests(state: ClusterState, number: int, salt: str = "") -> ReportDigests:
    """What a node reports for the parts it was assigned."""
    assert state.assignment is not None
    stage = state.assignment.stage_of(node(number))
    assert stage is not None
    parts = stage_parts(stage.layers, LAYERS, tied=False)
    return ReportDigests(
        state.epoch, node(number), {part: digest_of(part + salt) for part in parts}
    )


def loading(count: int) -> ClusterState:
    numbers = range(1, count + 1)
    return committed([*joined(count), DescribeModel(spec(), {}), assigned(1, numbers)])


def validated(count: int) -> ClusterState:
    state = loading(count)
    reports = [digests(state, number) for number in range(1, count + 1)]
    return committed([*reports, PassValidation(1, "root")], state)


def active(count: int) -> ClusterState:
    return committed([ReportWarm(1, node(1))], validated(count))
