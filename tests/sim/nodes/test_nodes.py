"""Whole nodes on virtual time under faults: no second cluster, no split brain, nothing unproven."""

import os
import subprocess
import sys

import pytest

from tests.sim.nodes.story import check_seed, run_seed

CI_SEEDS = 240
SEEDS_A_TEST = 10


@pytest.mark.parametrize("first", range(0, CI_SEEDS, SEEDS_A_TEST))
def test_whatever_goes_wrong_nothing_is_served_unproven_and_all_ends_well(first: int) -> None:
    for seed in range(first, first + SEEDS_A_TEST):
        check_seed(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(10_000, 12_000, 100))
def test_many_more_stories_of_nodes_end_well(first: int) -> None:
    for seed in range(first, first + 100):
        check_seed(seed)


@pytest.mark.parametrize("seed", [13, 22, 26])
def test_the_same_seed_is_the_same_story_in_every_process(seed: int) -> None:
    path = os.pathsep.join(sys.path)
    script = f"from tests.sim.nodes.story import run_seed; print(run_seed({seed}).fingerprint())"
    told = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={
                **os.environ,
                "PYTHONHASHSEED": hash_seed,
                "PYTHONPATH": path,
            },
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }

    assert told == {run_seed(seed).fingerprint()}
