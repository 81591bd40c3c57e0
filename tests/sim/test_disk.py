"""The simulated disk: what was synced stays, what was not is at the mercy of the dice."""

import os
import random
from pathlib import Path

import pytest

from butterfly_cluster.durable_files import write_durably
from butterfly_cluster.journal import Entry, Journal
from butterfly_cluster.journal_format import entry_record
from butterfly_core.errors import StorageError
from tests.sim.disk import PowerCut, SimDisk, simulated_disks
from tests.sim.virtual_loop import context_of


def disk_at(tmp_path: Path, seed: int) -> tuple[Path, SimDisk, list[str]]:
    failed: list[str] = []
    directory = tmp_path / "node"
    directory.mkdir()
    return directory, SimDisk(directory, random.Random(seed), lambda: failed.append("off")), failed


def keep(path: Path, data: bytes, disk: SimDisk) -> None:
    context_of("a").run(lambda: write_durably(path, data, sync_file=disk.sync))


@pytest.mark.parametrize("seed", range(20))
def test_synced_entries_survive_and_others_need_not(seed: int, tmp_path: Path) -> None:
    directory, disk, _ = disk_at(tmp_path, seed)
    synced, other = Entry(b"\x00synced", 2, 1), Entry(b"\x00" + b"x" * 200, 3, 1)

    def story() -> None:
        journal = Journal(directory / "raft.journal", sync_file=disk.sync)
        journal.append(synced)
        journal.sync()
        os.write(journal._descriptor, entry_record(other))  # written, never synced
        journal.close()
        disk.lose_the_cache()
        again = Journal(directory / "raft.journal", sync_file=disk.sync)
        assert again.entries in ([synced], [synced, other])
        again.close()

    with simulated_disks() as disks:
        disks["a"] = disk
        context_of("a").run(story)


def test_a_rename_without_a_sync_of_its_directory_may_be_lost(tmp_path: Path) -> None:
    found = set()
    for seed in range(20):
        home = tmp_path / str(seed)
        home.mkdir()
        directory, disk, _ = disk_at(home, seed)
        with simulated_disks() as disks:
            disks["a"] = disk
            keep(directory / "file", b"old", disk)
            (directory / "file.new").write_bytes(b"new")
            with (directory / "file.new").open("rb") as file:
                context_of("a").run(disk.sync, file.fileno())
            (directory / "file.new").rename(directory / "file")
            disk.lose_the_cache()
        found.add((directory / "file").read_bytes())

    assert found == {b"old", b"new"}


def test_the_power_fails_at_the_operation_it_was_told_and_stays_off(tmp_path: Path) -> None:
    directory, disk, failed = disk_at(tmp_path, 1)
    with simulated_disks() as disks:
        disks["a"] = disk
        disk.operations_until_cut = 2
        with pytest.raises(PowerCut):
            keep(directory / "file", b"data", disk)
        with pytest.raises(PowerCut):
            keep(directory / "other", b"data", disk)
        disk.restore_power()
        keep(directory / "other", b"data", disk)

    assert failed == ["off"]
    assert not (directory / "file").exists()


def test_a_full_disk_says_so_as_the_real_one_does(tmp_path: Path) -> None:
    directory, disk, _ = disk_at(tmp_path, 1)
    disk.full = True
    with simulated_disks() as disks:
        disks["a"] = disk
        with pytest.raises(StorageError, match="No space left"):
            keep(directory / "file", b"data", disk)
