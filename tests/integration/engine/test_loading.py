"""A stage takes exactly the tensors it needs, without a copy, or says which are wrong."""

from collections.abc import Callable

import pytest
import torch

from butterfly_core.errors import ModelError, ProtocolViolation
from butterfly_core.layers import LayerRange
from butterfly_engine.batch import SequenceStep, StepBatch
from butterfly_engine.stage import Stage
from butterfly_engine.supported import kv_cache_bytes
from tests.integration.engine.conftest import MadeModel
from tests.support.engine_pipelines import GREEDY, make_stages, tensors_for

Make = Callable[..., MadeModel]
MIDDLE = LayerRange(1, 3)


def middle(made: Make) -> dict[str, torch.Tensor]:
    _, tensors, _ = made("llama")
    return tensors_for(tensors, MIDDLE, 4, tied=False)


def test_tensors_of_the_right_type_are_not_copied(made: Make) -> None:
    tiny, tensors, _ = made("llama")
    (stage,) = make_stages(tiny.config, tensors, (0, 4))

    held = {one.data_ptr() for one in stage.parameters()}

    assert held == {tensor.data_ptr() for tensor in tensors.values()}


def test_a_middle_stage_holds_only_its_layers(made: Make) -> None:
    tiny, _, _ = made("llama")
    given = middle(made)

    stage = Stage(tiny.config, MIDDLE, given, kv_blocks=2)

    assert stage.weight_bytes == sum(tensor.nbytes for tensor in given.values())
    assert (stage.is_first, stage.is_last) == (False, False)


def test_kv_pools_take_what_the_planner_is_told(made: Make) -> None:
    tiny, _, _ = made("llama")

    stage = Stage(tiny.config, MIDDLE, middle(made), kv_blocks=5, block_size=4)

    assert stage.kv_bytes == kv_cache_bytes(tiny.config, MIDDLE, kv_blocks=5, block_size=4)


def test_a_missing_tensor_is_named(made: Make) -> None:
    tiny, _, _ = made("llama")
    given = middle(made)
    del given["model.layers.2.mlp.up_proj.weight"]

    with pytest.raises(ModelError, match=r"1 missing \(model\.layers\.2\.mlp\.up_proj\.weight\)"):
        Stage(tiny.config, MIDDLE, given, kv_blocks=2)


def test_an_unknown_tensor_is_named(made: Make) -> None:
    tiny, _, _ = made("llama")
    given = middle(made) | {"model.layers.1.surprise": torch.zeros(1)}

    with pytest.raises(ModelError, match=r"1 unknown \(model\.layers\.1\.surprise\)"):
        Stage(tiny.config, MIDDLE, given, kv_blocks=2)


def test_what_old_checkpoints_store_too_much_is_ignored(made: Make) -> None:
    tiny, _, _ = made("llama")
    given = middle(made) | {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.zeros(8)}

    stage = Stage(tiny.config, MIDDLE, given, kv_blocks=2)

    assert stage.weight_bytes == Stage(tiny.config, MIDDLE, middle(made), kv_blocks=2).weight_bytes


@pytest.mark.parametrize(
    ("tensor", "says"),
    [(torch.zeros(3, 3), r"shape \(3, 3\)"), (torch.zeros(96, 64, dtype=torch.int8), "int8")],
)
def test_a_wrong_tensor_is_named(made: Make, tensor: torch.Tensor, says: str) -> None:
    tiny, _, _ = made("llama")
    given = middle(made) | {"model.layers.1.mlp.up_proj.weight": tensor}

    with pytest.raises(ModelError, match=rf"layers\.1\.mlp\.up_proj\.weight .*{says}"):
        Stage(tiny.config, MIDDLE, given, kv_blocks=2)


def test_a_stored_head_of_a_tied_model_is_ignored(made: Make) -> None:
    tiny, tensors, _ = made("llama", tied=True)
    both = tensors | {"lm_head.weight": torch.zeros(300, 64)}
    batch = StepBatch(0, 1, (5, 6, 7), (SequenceStep(1, 0, 3, (0,), GREEDY),))

    answers = [
        Stage(tiny.config, LayerRange(0, 4), given, kv_blocks=2).step(batch).tolist()
        for given in (tensors, both)
    ]

    assert answers[0] == answers[1]


def test_layers_beyond_the_model_are_refused(made: Make) -> None:
    tiny, _, _ = made("llama")

    with pytest.raises(ModelError, match="has 4"):
        Stage(tiny.config, LayerRange(3, 5), {}, kv_blocks=2)


@pytest.mark.parametrize(
    "change", [{"hidden_size": "wide"}, {"num_attention_heads": 0}, {"hidden_act": "no such"}]
)
def test_a_config_that_makes_no_model_is_refused(made: Make, change: dict[str, object]) -> None:
    tiny, tensors, _ = made("llama")

    with pytest.raises(ModelError):
        Stage({**tiny.config, **change}, LayerRange(0, 4), tensors, kv_blocks=2)


def test_a_checkpoint_of_two_byte_numbers_runs_in_them(made: Make) -> None:
    tiny, tensors, whole = made("qwen3", dtype="bfloat16")
    stages = make_stages(tiny.config, tensors, (0, 2, 4))
    prompt = tuple(range(20, 40))
    batch = StepBatch(0, 1, prompt, (SequenceStep(1, 0, len(prompt), (0, 1, 2), GREEDY),))

    hidden = stages[0].step(batch)
    (token,) = stages[1].step(batch, hidden).tolist()

    with torch.inference_mode():
        logits = whole(torch.tensor([prompt])).logits[0, -1]
    assert hidden.dtype == torch.bfloat16
    assert logits[token] >= logits.max() - 0.5, "as good as the best, to rounding"


def test_a_type_may_be_chosen(made: Make) -> None:
    tiny, tensors, _ = made("llama")

    stage = Stage(tiny.config, LayerRange(0, 4), tensors, kv_blocks=2, dtype="bfloat16")

    assert {one.dtype for one in stage.parameters()} == {torch.bfloat16}


def first_step(start: int = 0, block_table: tuple[int, ...] = (0,)) -> StepBatch:
    return StepBatch(0, 1, (5, 6), (SequenceStep(1, start, 2, block_table),))


@pytest.mark.parametrize(
    "batch",
    [
        first_step(block_table=(2,)),
        first_step(block_table=()),
        first_step(start=15),
        StepBatch(0, 1, (5, 300), (SequenceStep(1, 0, 2, (0,)),)),
    ],
)
def test_a_step_not_meant_for_this_stage_is_refused(made: Make, batch: StepBatch) -> None:
    tiny, tensors, _ = made("llama")
    stage = Stage(tiny.config, LayerRange(0, 4), tensors, kv_blocks=2)

    with pytest.raises(ProtocolViolation):
        stage.step(batch)


def test_hidden_states_belong_to_later_stages_and_fit(made: Make) -> None:
    tiny, tensors, _ = made("llama")
    first, last = make_stages(tiny.config, tensors, (0, 2, 4))
    batch = first_step()

    with pytest.raises(ProtocolViolation):
        first.step(batch, torch.zeros(2, 64))
    with pytest.raises(ProtocolViolation):
        last.step(batch)
    with pytest.raises(ProtocolViolation):
        last.step(batch, torch.zeros(3, 64))
