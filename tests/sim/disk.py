"""A node's disk: real files, of which only what was synced survives a loss of power.

``simulated_disks`` puts a stand-in for ``os`` into the two modules that write files. It finds
the disk of the running process by the loop's OWNER and counts each write and sync, so that
the power can fail, or the space end, at any of them.
"""

import contextlib
import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from butterfly_cluster import durable_files, journal
from tests.sim.virtual_loop import OWNER

SECTOR_BYTES, TOLD_BYTES_MIN = 512, 32


class PowerCut(BaseException):
    """The machine is off in the middle of something; no handler of the program runs."""


class SimDisk:
    """The files of one node. ``power_fails`` is called once, when the fault strikes."""

    def __init__(
        self, directory: Path, dice: random.Random, power_fails: Callable[[], None]
    ) -> None:
        self._directory, self._dice, self._power_fails = directory, dice, power_fails
        self._kept = directory.with_name(directory.name + ".kept")
        self._kept.mkdir()
        self._names: dict[str, int] = {}
        self._synced: dict[int, int] = {}
        self._off = False
        self.operations_until_cut: int | None = None
        self.full = False

    # What the program does.

    def sync(self, descriptor: int) -> None:
        """As fsync; on a directory it makes the names durable."""
        self._may_fail()
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self._sync_names()
        else:
            self._synced[found.st_ino] = found.st_size
        self._may_fail()

    def write(self, descriptor: int, data: Any) -> int:
        """As write; a power cut leaves a part, a full disk takes a part first."""
        try:
            self._may_fail()
        except PowerCut:
            os.write(descriptor, data[: self._dice.randrange(len(data) + 1)])
            raise
        return os.write(descriptor, data)

    def _may_fail(self) -> None:
        if self._off:
            raise PowerCut
        if self.operations_until_cut is not None:
            self.operations_until_cut -= 1
            if self.operations_until_cut <= 0:
                self._off = True
                self._power_fails()
                raise PowerCut
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _sync_names(self) -> None:
        names = {entry.name: entry.inode() for entry in self._files()}
        for inode in set(self._names.values()) - set(names.values()):
            (self._kept / str(inode)).unlink()
            self._synced.pop(inode, None)
        for name, inode in names.items():
            if inode not in self._names.values():
                os.link(self._directory / name, self._kept / str(inode))
        self._names = names

    # What the simulation does.

    def lose_the_cache(self) -> None:
        """Keep what was synced and, of the rest, whatever the dice say."""
        here = {entry.name: entry.inode() for entry in self._files()}
        for name in sorted(here.keys() | self._names.keys()):
            old = self._names.get(name)
            if old != here.get(name) and self._dice.random() < 0.5:
                (self._directory / name).unlink(missing_ok=True)
                if old is not None:
                    os.link(self._kept / str(old), self._directory / name)
        for entry in list(self._files()):
            self._tear(Path(entry.path), self._synced.get(entry.inode(), 0))

    def restore_power(self) -> None:
        """Before a restart."""
        self._off, self.operations_until_cut = False, None

    def _tear(self, path: Path, safe_bytes: int) -> None:
        size = path.stat().st_size
        if size <= safe_bytes:
            return
        starts = [safe_bytes, *range(safe_bytes - safe_bytes % SECTOR_BYTES, size, SECTOR_BYTES)]
        starts = [at for at in starts if at >= safe_bytes and _can_be_told(at, size)]
        if starts and self._dice.random() < 0.3:
            os.truncate(path, self._dice.choice(starts))
            os.truncate(path, size)  # the size got to the disk, these sectors did not: zeros
        else:
            os.truncate(path, self._dice.randint(safe_bytes, size))

    def _files(self) -> Iterator["os.DirEntry[str]"]:
        return (entry for entry in os.scandir(self._directory) if not entry.name.endswith(".lock"))


def _can_be_told(start: int, size: int) -> bool:
    """Fewer zeros than these in a sector look like damage: the node joins under a new id."""
    in_sector = SECTOR_BYTES - start % SECTOR_BYTES
    return min(in_sector, size - start) >= TOLD_BYTES_MIN


class _SimulatedOs:
    """``os`` with a disk for each process; whoever has none writes without a sync."""

    def __init__(self, disks: dict[str, SimDisk]) -> None:
        self._disks = disks

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        disk = self._disks.get(OWNER.get())
        if disk is not None:
            disk.sync(descriptor)

    fdatasync = fsync

    def write(self, descriptor: int, data: Any) -> int:
        disk = self._disks.get(OWNER.get())
        return os.write(descriptor, data) if disk is None else disk.write(descriptor, data)


@contextlib.contextmanager
def simulated_disks() -> Iterator[dict[str, SimDisk]]:
    """Register the disk of each process by its OWNER in the dictionary."""
    disks: dict[str, SimDisk] = {}
    stand_in = _SimulatedOs(disks)
    modules: tuple[Any, ...] = (durable_files, journal)
    real = [module.os for module in modules]
    for module in modules:
        module.os = stand_in
    try:
        yield disks
    finally:
        for module, before in zip(modules, real, strict=True):
            module.os = before
