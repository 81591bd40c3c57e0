"""One seed, one story: a cluster, its clients, its faults, and a verdict."""

import asyncio
import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from butterfly_cluster import raft_sync, snapshot_shelf
from butterfly_cluster.raft import LAN, WAN, Timing
from butterfly_cluster.raft_codec import BATCH_BYTES_MAX, SNAPSHOT_CHUNK_BYTES
from tests.sim.aimed import ROUNDS, Aimed
from tests.sim.clients import Clients
from tests.sim.cluster import Cluster
from tests.sim.disk import simulated_disks
from tests.sim.nemesis import Nemesis
from tests.sim.virtual_loop import run_virtually, the_loop

IN_MEMORY = Path("/dev/shm")
WIDE_EVERY, WIDE_REST = 10, 7
WIDE_DELAYS_SECONDS = (0.02, 0.15)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a seed decides before anything happens.

    ``aim``: the round that is played now and then, or empty. Small batches and chunks make long
    logs and snapshots travel in pieces.
    """

    founders: int
    learners: int
    changes: bool
    aim: str
    batch_bytes: int
    chunk_bytes: int
    compact_after_entries: int
    virtual_seconds: float
    clients_per_second: float
    timing: Timing


@dataclass(frozen=True, slots=True)
class Story:
    """What came of a seed."""

    seed: int
    setting: Setting
    violations: tuple[str, ...]
    fingerprint: str
    acknowledged: int
    operations: int
    undecided: int
    elections: int
    committed: int
    messages: int


def setting_of(seed: int) -> Setting:
    """The same for the same seed. Those that end with 7 play in a wide area, more slowly."""
    wide = seed % WIDE_EVERY == WIDE_REST
    dice = random.Random(f"setting {seed}")
    return Setting(
        founders=dice.choice([3, 3, 3, 5, 5]),
        learners=dice.choice([0, 1, 2]),
        changes=dice.random() < 0.6,
        aim=dice.choice(["", *ROUNDS]),
        batch_bytes=dice.choice([400, 2000, BATCH_BYTES_MAX]),
        chunk_bytes=dice.choice([300, 3000, SNAPSHOT_CHUNK_BYTES]),
        compact_after_entries=dice.choice([20, 60, 5000]),
        virtual_seconds=24.0 if wide else 6.0,
        clients_per_second=dice.choice([8.0, 15.0, 25.0]) / (4 if wide else 1),
        timing=WAN if wide else LAN,
    )


def check_seed(seed: int) -> int:
    """Raise AssertionError with the story when a seed breaks anything.

    Returns how many histories were too wild to be judged: no proof of anything, and no finding.
    """
    story = run_seed(seed)
    _judge(story)
    return story.undecided


def tell_seed(seed: int, tell: Callable[[str], None]) -> None:
    """As ``check_seed``, telling everything that happens, line by line."""
    tell(str(setting_of(seed)))
    _judge(run_seed(seed, tell))


def _judge(story: Story) -> None:
    assert not story.violations, (
        f"seed {story.seed}: {len(story.violations)} violations, first {story.violations[:3]}; "
        f"replay: python tools/sim.py --world raft --replay {story.seed}"
    )


def run_seed(seed: int, tell: Callable[[str], None] | None = None) -> Story:
    """Play one seed; ``tell`` gets a line for everything that happens."""
    setting = setting_of(seed)
    directory = Path(tempfile.mkdtemp(dir=IN_MEMORY if IN_MEMORY.is_dir() else None))
    try:
        with simulated_disks() as disks, _sizes(setting):
            founders, learners = setting.founders, setting.learners

            async def play() -> Story:
                cluster = Cluster(
                    seed, directory, founders, learners, disks=disks, timing=setting.timing
                )
                if setting.timing is WAN:
                    cluster.network.delays_seconds = WIDE_DELAYS_SECONDS
                cluster.compact_after_entries = setting.compact_after_entries
                if tell is not None:
                    _narrate(cluster, tell)
                return await _play(seed, setting, cluster)

            return run_virtually(play())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def _play(seed: int, setting: Setting, cluster: Cluster) -> Story:
    clients = Clients(cluster)
    async with cluster.running():
        nemesis = Nemesis(cluster, changes=setting.changes)
        load = the_loop().create_task(_load(cluster, clients, setting.clients_per_second))
        await _trouble(cluster, nemesis, setting)
        load.cancel()
        await nemesis.end()
        await clients.finish()
        try:
            await cluster.until_led(15.0 * cluster.pace)
            await cluster.until_equal(20.0 * cluster.pace)
        except TimeoutError:
            cluster.invariants.broken(f"healed, but it did not converge: {_state_of(cluster)}")
    clients.judge()
    return Story(
        seed=seed,
        setting=setting,
        violations=tuple(cluster.violations),
        fingerprint=cluster.fingerprint(),
        acknowledged=len(cluster.acknowledged),
        operations=clients.operations,
        undecided=clients.undecided,
        elections=len(cluster.elections),
        committed=cluster.invariants.committed_entries,
        messages=cluster.network.messages,
    )


async def _load(cluster: Cluster, clients: Clients, per_second: float) -> None:
    dice = random.Random(cluster.dice.random())
    while True:
        await asyncio.sleep(dice.expovariate(per_second))
        clients.act()


async def _trouble(cluster: Cluster, nemesis: Nemesis, setting: Setting) -> None:
    aimed = Aimed(cluster, nemesis)
    await asyncio.sleep(0.8 * cluster.pace)
    while the_loop().time() < setting.virtual_seconds:
        if setting.aim and cluster.dice.random() < 0.4:
            await aimed.round(setting.aim)
        else:
            await nemesis.strike()
            await asyncio.sleep(cluster.dice.uniform(0.05, 1.2) * cluster.pace)


def _state_of(cluster: Cluster) -> dict[str, tuple[int, int, int, bool]]:
    return {
        me[-2:]: (node.term, node.commit_index, node._core.last_index, node.is_leader)
        for me, node in cluster.nodes.items()
    }


@contextlib.contextmanager
def _sizes(setting: Setting) -> Iterator[None]:
    with (
        mock.patch.object(raft_sync, "BATCH_BYTES_MAX", setting.batch_bytes),
        mock.patch.object(snapshot_shelf, "SNAPSHOT_CHUNK_BYTES", setting.chunk_bytes),
    ):
        yield


def _narrate(cluster: Cluster, tell: Callable[[str], None]) -> None:
    from tests.sim.narrator import Narrator  # only a replay needs it

    Narrator(cluster, tell).listen()
