"""Tokens of a pipeline equal those of transformers' generate on the whole model."""

import json
import random
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import linear

from butterfly.demo_model import demo_model_directory
from butterfly_core.generation import FinishReason
from butterfly_engine.params import SchedulerLimits
from butterfly_engine.supported import SUPPORTED_ARCHITECTURES
from tests.integration.engine.conftest import MadeModel
from tests.support.engine_pipelines import Pipeline, make_stages
from tests.support.tiny_models import VOCAB_SIZE, read_tensors, reference_greedy

LAYERS = 4
CUTS = ((0, 4), (0, 1, 4), (0, 1, 3, 4))
MODELS = [
    *((family, tied, None) for family in ("llama", "qwen2", "qwen3") for tied in (False, True)),
    *((family, False, 6) for family in ("mistral", "qwen2", "qwen3")),
    ("mistral", True, None),
    *((family, False, None) for family in ("granite", "olmo2", "phi3", "smollm3")),
    ("phi3", False, 6),
    ("smollm3", True, None),
]


def prompts() -> list[list[int]]:
    chance = random.Random(1)
    return [[chance.randrange(256) for _ in range(length)] for length in (3, 9, 40, 1, 17, 5)]


@pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: f"{len(cuts) - 1}-stages")
@pytest.mark.parametrize(("family", "tied", "window"), MODELS)
def test_concurrent_answers_equal_transformers(
    made: Callable[..., MadeModel],
    family: str,
    tied: bool,
    window: int | None,
    cuts: tuple[int, ...],
) -> None:
    tiny, tensors, whole = made(family, layers=LAYERS, tied=tied, sliding_window=window)
    asked = prompts()
    expected = [reference_greedy(whole, prompt, 10) for prompt in asked]
    # 12 blocks of 8 tokens for 135 tokens in all, and 11 tokens a step: chunks and preemption.
    stages = make_stages(tiny.config, tensors, cuts, kv_blocks=12)
    limits = SchedulerLimits(
        kv_blocks=12, block_size=8, token_budget=11, groups=len(stages), vocab_size=VOCAB_SIZE
    )

    with Pipeline(stages, limits) as pipeline:
        for number, prompt in enumerate(asked):
            pipeline.submit(str(number), prompt, 10)
        finishes = [pipeline.answers.wait_end(str(number)) for number in range(len(asked))]
        answers = [pipeline.answers.tokens(str(number)) for number in range(len(asked))]
        statistics = pipeline.head.statistics()
        assert not pipeline.lost

    assert answers == expected
    assert finishes == [FinishReason.LENGTH] * len(asked)
    assert statistics["kv_blocks_free"] == 12


def test_every_supported_architecture_is_compared_here(made: Callable[..., MadeModel]) -> None:
    compared = {made(family)[0].config["architectures"][0] for family, _, _ in MODELS}

    assert compared == set(SUPPORTED_ARCHITECTURES)


def test_a_window_changes_the_answer_or_the_comparison_proves_nothing(
    made: Callable[..., MadeModel],
) -> None:
    for family in ("mistral", "qwen2", "qwen3", "phi3"):
        answers = []
        for window in (None, 6):
            _, _, whole = made(family, layers=LAYERS, tied=False, sliding_window=window)
            answers.append(reference_greedy(whole, prompts()[2], 10))
        assert answers[0] != answers[1]


def rows_round_alone() -> bool:
    """Whether a bfloat16 product here gives a row the same bits in whatever company."""
    generator = torch.Generator().manual_seed(1)
    rows, weights = (
        torch.randn(shape, generator=generator).bfloat16() for shape in ((130, 192), (512, 192))
    )
    alone = torch.cat([linear(row[None], weights) for row in rows])
    return torch.equal(alone, linear(rows, weights))


def test_an_answer_in_bfloat16_goes_on_elsewhere_with_the_same_words() -> None:
    """Token 106 of this answer is a near tie: it fell the other way when 6, 10 or 100 tokens
    were computed anew as if they were prompt."""
    if not rows_round_alone():
        pytest.skip("this processor's bfloat16 products depend on the number of rows")
    folder = demo_model_directory()
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    tensors = read_tensors(folder)
    prompt = [0, 270, 283, 278, 2509, 284, 304, 498, 36]

    def answer(name: str, cuts: tuple[int, ...], emitted: tuple[int, ...]) -> list[int]:
        stages = make_stages(config, tensors, cuts, kv_blocks=16, block_size=16)
        limits = SchedulerLimits(kv_blocks=16, block_size=16, groups=len(stages))
        with Pipeline(stages, limits) as pipeline:
            pipeline.submit(name, prompt, 120, ignore_eos=True, emitted=emitted)
            assert pipeline.answers.wait_end(name) is FinishReason.LENGTH
            return [*emitted, *pipeline.answers.tokens(name)]

    whole = answer("whole", (0, 2, 4, 6), ())

    for count in (1, 2, 6, 10, 100):
        assert answer(str(count), (0, 3, 6), tuple(whole[:count])) == whole
