"""The real Raft code on virtual time under faults: what was acknowledged survives."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from butterfly_cluster.journal import Journal
from tests.sim.cluster import Cluster, Nemesis
from tests.sim.virtual_loop import run_virtually

VIRTUAL_SECONDS = 8.0


async def soak(seed: int, directory: Path, founders: int, learners: int, changes: bool) -> Cluster:
    cluster = Cluster(seed, directory, founders, learners)
    loop = asyncio.get_running_loop()
    async with cluster.running():
        nemesis = Nemesis(cluster, changes=changes)
        writing: set[asyncio.Task[bool]] = set()
        strike_at = loop.time() + 1.0
        while loop.time() < VIRTUAL_SECONDS:
            task = loop.create_task(cluster.write(cluster.dice.choice(cluster.everyone)))
            writing.add(task)
            task.add_done_callback(writing.discard)
            await asyncio.sleep(cluster.dice.expovariate(15.0))
            if loop.time() >= strike_at:
                await nemesis.strike()
                strike_at = loop.time() + cluster.dice.uniform(0.1, 1.5)
        await nemesis.end()
        await asyncio.gather(*writing, return_exceptions=True)
        await cluster.until_led()
        await cluster.until_equal()
    return cluster


def check(seed: int, directory: Path, founders: int, learners: int, changes: bool) -> Cluster:
    cluster = run_virtually(soak(seed, directory, founders, learners, changes))
    assert not cluster.violations, (seed, cluster.violations[:5])
    return cluster


@pytest.mark.parametrize("seed", range(10))
def test_three_voters_keep_what_they_acknowledged(seed: int, tmp_path: Path) -> None:
    cluster = check(seed, tmp_path, 3, 0, changes=False)

    assert cluster.acknowledged


@pytest.mark.parametrize("seed", range(100, 106))
def test_voters_that_come_and_go_never_make_two_majorities(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path, 3, 2, changes=True)


@pytest.mark.parametrize("seed", range(200, 204))
def test_five_voters_and_a_learner_agree(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path, 5, 1, changes=False)


def test_the_same_seed_is_the_same_story(tmp_path: Path) -> None:
    stories = []
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        stories.append(check(7, tmp_path / run, 3, 1, changes=True).fingerprint())

    assert stories[0] == stories[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1120))
def test_many_more_seeds_hold(seed: int, tmp_path: Path) -> None:
    check(seed, tmp_path, 3 + 2 * (seed % 2), seed % 3, changes=seed % 4 != 0)


def test_the_soak_sees_a_journal_that_syncs_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of the check: acknowledgements that outrun the disk are found out."""
    really_sync = Journal.sync
    synced_at: dict[int, float] = {}

    def sync_now_and_then(journal: Journal) -> None:
        now = asyncio.get_running_loop().time()
        if now - synced_at.get(id(journal), -1.0) > 0.3:
            synced_at[id(journal)] = now
            really_sync(journal)

    monkeypatch.setattr(Journal, "sync", sync_now_and_then)
    monkeypatch.setattr(Journal, "dirty", False)
    with pytest.raises(AssertionError, match=r"was acknowledged|are lost|applied"):
        soak_until_it_is_found_out(tmp_path)


def soak_until_it_is_found_out(directory: Path) -> None:
    for seed in range(1000, 1060):
        (directory / str(seed)).mkdir()
        with contextlib.suppress(TimeoutError):  # a cluster that hangs is no proof
            check(seed, directory / str(seed), 3, 0, changes=False)
