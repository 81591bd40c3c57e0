"""Whole nodes on virtual time under faults: no second cluster, no split brain, nothing unproven."""

import pytest

from tests.sim.nodes.story import check_seed, run_seed


@pytest.mark.parametrize("seed", range(20))
def test_whatever_goes_wrong_nothing_is_served_unproven_and_all_ends_well(seed: int) -> None:
    check_seed(seed)


def test_the_same_seed_is_the_same_story_of_nodes() -> None:
    assert run_seed(12).fingerprint() == run_seed(12).fingerprint()
