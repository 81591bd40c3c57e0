"""Tokens are drawn as their probabilities say, and never depend on who else is in the batch."""

import math
from collections.abc import Sequence

import pytest
import torch

from butterfly_core.generation import SamplingParams
from butterfly_engine import sampler
from butterfly_engine.counter_random import uniform
from butterfly_engine.sampler import sample

GREEDY = SamplingParams(temperature=0.0)


def naive_probabilities(logits: Sequence[float], params: SamplingParams) -> list[float]:
    """Temperature, top_k and top_p for one row, written for the reader; ties are kept."""
    heat = [value / params.temperature for value in logits]
    if 0 < params.top_k < len(heat):
        floor = sorted(heat, reverse=True)[params.top_k - 1]
        heat = [value if value >= floor else -math.inf for value in heat]
    top = max(heat)
    weights = [math.exp(value - top) for value in heat]
    total = sum(weights)
    probabilities = [weight / total for weight in weights]
    if params.top_p < 1:
        reached, floor = 0.0, 0.0
        for floor in sorted(probabilities, reverse=True):
            reached += floor
            if reached >= params.top_p:
                break
        probabilities = [one if one >= floor else 0.0 for one in probabilities]
    total = sum(probabilities)
    return [one / total for one in probabilities]


def naive_choice(probabilities: Sequence[float], at: float) -> int:
    reached = 0.0
    for token, probability in enumerate(probabilities):
        reached += probability
        if reached > at:
            return token
    raise AssertionError("probabilities do not sum to 1")


PARAMS = [
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.5, top_k=5),
    SamplingParams(temperature=1.3, top_p=0.7),
    SamplingParams(temperature=0.8, top_k=20, top_p=0.9),
    SamplingParams(temperature=2.0, top_k=1),
    SamplingParams(temperature=1.0, top_p=0.01),
    SamplingParams(temperature=1.0, top_k=1_000_000, top_p=0.999),
]


def logits_of(rows: int, vocabulary: int, *, scale: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(rows, vocabulary, generator=generator) * scale


def test_temperature_zero_is_greedy() -> None:
    logits = logits_of(4, 50)

    assert sample(logits, [GREEDY] * 4, [0] * 4).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("params", PARAMS, ids=str)
@pytest.mark.parametrize("vocabulary", [40, 3000])
def test_each_token_is_the_one_a_naive_sampler_draws(
    params: SamplingParams, vocabulary: int
) -> None:
    rows = 32
    logits = logits_of(rows, vocabulary)

    drawn = sample(logits, [params] * rows, list(range(rows)))

    for row, token in enumerate(drawn.tolist()):
        probabilities = naive_probabilities(logits[row].tolist(), params)
        assert token == naive_choice(probabilities, uniform(params.seed, row))


def test_a_nucleus_wider_than_the_candidates_is_still_right() -> None:
    """Flat logits: the nucleus of 0.9 holds 2700 of 3000 tokens."""
    params = SamplingParams(temperature=1.0, top_p=0.9)
    logits = logits_of(32, 3000, scale=0.01)

    drawn = sample(logits, [params] * 32, list(range(32)))

    for row, token in enumerate(drawn.tolist()):
        probabilities = naive_probabilities(logits[row].tolist(), params)
        assert token == naive_choice(probabilities, uniform(0, row))
        assert sum(1 for one in probabilities if one) > 2000


def test_many_draws_have_the_softmaxs_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    draws = 4000

    drawn = sample(logits.expand(draws, 4), [SamplingParams(seed=11)] * draws, list(range(draws)))

    counts = torch.bincount(drawn, minlength=4).double()
    expected = logits[0].double().softmax(-1) * draws
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_squared < 16.3, "p = 0.001 at 3 degrees of freedom; the seed is fixed"


def test_a_row_draws_the_same_alone_and_in_any_company() -> None:
    seeded = [
        SamplingParams(one.temperature, one.top_p, one.top_k, seed=number)
        for number, one in enumerate([*PARAMS, GREEDY])
    ]
    logits = logits_of(len(seeded), 3000)
    positions = list(range(100, 100 + len(seeded)))
    together = sample(logits, seeded, positions).tolist()
    backwards = sample(logits.flip(0), seeded[::-1], positions[::-1]).tolist()[::-1]
    alone = [
        int(sample(logits[row : row + 1], [seeded[row]], [positions[row]]))
        for row in range(len(seeded))
    ]

    assert together == backwards == alone


def test_tied_logits_of_a_coarse_type_do_not_break_the_invariance() -> None:
    logits = logits_of(6, 500).bfloat16()
    params = [SamplingParams(1.0, top_p=0.8, top_k=k, seed=k) for k in (3, 50, 0, 7, 400, 20)]

    together = sample(logits, params, [5] * 6).tolist()
    alone = [int(sample(logits[row : row + 1], [params[row]], [5])) for row in range(6)]

    assert together == alone


def test_the_logits_given_are_not_changed() -> None:
    logits = logits_of(3, 50)
    before = logits.clone()

    sample(logits, [SamplingParams(1.0, 0.5, 3), GREEDY, SamplingParams()], [1, 2, 3])

    assert torch.equal(logits, before)


def test_a_hair_above_zero_is_still_sound() -> None:
    logits = logits_of(2, 50)
    cold = SamplingParams(temperature=2e-5)

    assert sample(logits, [cold, cold], [1, 2]).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("at", [0.0, 0.5, 1 - 2**-53])
def test_a_token_that_was_cut_off_is_never_drawn(
    monkeypatch: pytest.MonkeyPatch, at: float
) -> None:
    monkeypatch.setattr(sampler, "uniform", lambda seed, position: at)
    logits = torch.full((1, 9), -3.0)
    logits[0, 4] = 7.0

    assert sample(logits, [SamplingParams(top_k=1)], [0]).tolist() == [4]
