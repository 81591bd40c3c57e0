"""Chance that depends on seed and position alone."""

from collections.abc import Iterator
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from butterfly_engine.counter_random import uniform


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**31))
def test_the_same_question_has_the_same_answer_in_range(seed: int, position: int) -> None:
    assert 0.0 <= uniform(seed, position) < 1.0
    assert uniform(seed, position) == uniform(seed, position)


def split_mix(seed: int) -> Iterator[int]:
    """SplitMix64 as its authors wrote it: a state that takes a step for each number."""
    state = seed
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
        yield mixed ^ (mixed >> 31)


def test_it_is_split_mix_64_indexed_by_position() -> None:
    assert next(split_mix(0)) == 0xE220A8397B1DCDAF, "the published first number of seed 0"
    for seed in (0, 1, 2**63 - 1):
        stream = split_mix(next(split_mix(seed)))
        for position in range(5):
            assert uniform(seed, position) == (next(stream) >> 11) / 2**53


def test_neighbouring_seeds_and_positions_are_unrelated_and_even() -> None:
    for values in (
        [uniform(1, position) for position in range(4096)],
        [uniform(seed, 1) for seed in range(4096)],
        [uniform(i, i) for i in range(4096)],
    ):
        buckets = [0] * 16
        for value in values:
            buckets[int(value * 16)] += 1
        assert all(180 < count < 340 for count in buckets)
        pairs = pairwise(values)
        assert abs(sum((a - 0.5) * (b - 0.5) for a, b in pairs) / 4095) < 0.005
