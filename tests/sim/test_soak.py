"""The real Raft code on virtual time under faults: what was acknowledged survives."""

import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly_cluster.raft import LAN, WAN, Timing
from tests.sim import clients
from tests.sim.mutants import MUTANTS
from tests.sim.raft_world import WIDE_EVERY, Story, check_seed, run_seed, setting_of
from tests.sim.wgl import Verdict

SEEDS = 200
BATCHES = 4
FOUND_OUT_BY = {"snap": 5, "single": 3, "term": 52, "trunc": 1, "fsync": 0}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Faults by the thousand are not worth a line each."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def problem_of(seed: int) -> str:
    logging.disable(logging.CRITICAL)
    try:
        check_seed(seed)
    except AssertionError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_promise_holds_under_faults(batch: int) -> None:
    seeds = range(batch, SEEDS, BATCHES)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        problems = [problem for problem in pool.imap_unordered(problem_of, seeds) if problem]

    assert not problems


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(10))
def test_many_more_seeds_hold(batch: int) -> None:
    seeds = range(10_000 + 100 * batch, 10_100 + 100 * batch)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        problems = [problem for problem in pool.imap_unordered(problem_of, seeds) if problem]

    assert not problems


@pytest.mark.parametrize(("seed", "timing"), [(11, LAN), (17, WAN)], ids=["lan", "wan"])
def test_a_story_is_worth_telling(seed: int, timing: Timing) -> None:
    story: Story = run_seed(seed)

    assert story.setting.timing is timing
    assert story.acknowledged > 20
    assert story.operations > 20
    assert story.elections >= 2
    assert story.undecided == 0


def test_every_tenth_story_plays_in_a_wide_area() -> None:
    wide = [seed for seed in range(SEEDS) if setting_of(seed).timing is WAN]

    assert len(wide) == SEEDS // WIDE_EVERY


def test_a_history_that_cannot_be_judged_is_counted_and_breaks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clients, "check", lambda _: Verdict.UNDECIDED)

    assert check_seed(11) == len(clients.KEYS)


def test_the_same_seed_is_the_same_story_in_any_process() -> None:
    program = "from tests.sim.raft_world import run_seed; print(run_seed(7).fingerprint)"
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "crates_py")])
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("1", "2")
    }

    assert told == {run_seed(7).fingerprint}


@pytest.mark.parametrize("mutant", FOUND_OUT_BY)
def test_the_soak_finds_out_a_broken(mutant: str) -> None:
    """A check of the check: one seed that is enough, kept; unbroken code stands it."""
    seed = FOUND_OUT_BY[mutant]
    with MUTANTS[mutant]():
        story = run_seed(seed)

    assert story.violations
    assert not run_seed(seed).violations


@pytest.mark.slow
@pytest.mark.parametrize("mutant", FOUND_OUT_BY)
def test_two_hundred_fresh_seeds_find_out_a_broken(mutant: str) -> None:
    with MUTANTS[mutant]():
        assert any(run_seed(seed).violations for seed in range(50_000, 50_200))
