"""Tokens of a pipeline equal those of transformers' generate on the whole model."""

import random
from collections.abc import Callable

import pytest

from butterfly_core.generation import FinishReason
from butterfly_engine.params import SchedulerLimits
from butterfly_engine.supported import SUPPORTED_ARCHITECTURES
from tests.integration.engine.conftest import MadeModel
from tests.support.engine_pipelines import Pipeline, make_stages
from tests.support.tiny_models import VOCAB_SIZE, reference_greedy

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
