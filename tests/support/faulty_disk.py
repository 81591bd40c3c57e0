"""A directory whose disk fails at a chosen system call, and what a power cut would leave of it.

``FaultyDisk`` stands in for ``os.open``, ``write``, ``rename``, ``close`` and for the sync of
files below one directory, counts these calls, and lets one of them, or all from one on, fail.
It is as mean as a kernel may be: what was not synced when a sync failed is lost for ever, and
a later sync that succeeds does not cover it.
"""

import errno
import os
import random
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from butterfly_cluster import durable_files

_open, _write, _rename, _close = os.open, os.write, os.rename, os.close


class PowerCut(BaseException):
    """The machine is off; no handler of the program runs."""


@dataclass(frozen=True)
class Fault:
    """At which call what happens: ``code`` 0 is a power cut.

    ``lasting`` faults strike at every call from there on. ``short`` writes take a half first.
    """

    at: int
    code: int
    lasting: bool = False
    short: bool = False


@dataclass
class _Content:
    held: int  # a descriptor, so that the inode's number is not given to another file
    synced: bytes = b""
    lost: bool = False

    def now(self) -> bytes:
        return os.pread(self.held, 1 << 24, 0)


class FaultyDisk:
    """See the module. ``fault`` may be set between two steps of a test."""

    def __init__(self, directory: Path) -> None:
        self._directory = str(directory)
        self.path = directory
        self.fault: Fault | None = None
        self.calls: list[str] = []
        self.failed = 0
        self._contents: dict[int, _Content] = {}
        self._durable: dict[str, int] = {}
        self._limbo: dict[str, int | None] = {}

    # What the program calls.

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if not self._is_ours(path):
            return _open(path, flags, mode, dir_fd=dir_fd)
        self._may_fail("open")
        descriptor = _open(path, flags, mode, dir_fd=dir_fd)
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_ino not in self._contents:
            held = _open(path, os.O_RDONLY)
            self._contents[found.st_ino] = _Content(held)
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        if os.fstat(descriptor).st_ino not in self._contents:
            return _write(descriptor, data)
        short = self.fault is not None and self.fault.short
        if short and self.fault and len(self.calls) == self.fault.at:
            self.calls.append("write")
            return _write(descriptor, data[: len(data) // 2])
        self._may_fail("write")
        return _write(descriptor, data)

    def sync(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        try:
            self._may_fail("sync")
        except OSError:
            self._drop_what_waits(found)
            raise
        if stat.S_ISDIR(found.st_mode):
            if found.st_ino == self.path.stat().st_ino:
                self._sync_names()
            return
        content = self._contents[found.st_ino]
        if not content.lost:
            content.synced = content.now()

    def rename(self, source: Any, target: Any, **more: Any) -> None:
        if self._is_ours(source):
            self._may_fail("rename")
        _rename(source, target, **more)
        self._limbo.pop(Path(target).name, None)
        self._limbo.pop(Path(source).name, None)

    def close(self, descriptor: int) -> None:
        ours = os.fstat(descriptor).st_ino in self._contents
        _close(descriptor)
        if ours:
            self._may_fail("close")

    # What the test calls.

    @contextmanager
    def inserted(self) -> Iterator[None]:
        """Every file operation of the program goes through here."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "write", "rename", "close"):
                patch.setattr(os, name, getattr(self, name))
            patch.setitem(_defaults(durable_files.write_durably), "sync_file", self.sync)
            patch.setattr(durable_files.sync_directory, "__defaults__", (self.sync,))
            yield

    def after_power_cut(self, target: Path, dice: random.Random | None = None) -> Path:
        """Make a directory of what is left: what was synced and, by the dice, some of the rest."""
        target.mkdir()
        now = self._names()
        for name in sorted(now.keys() | self._durable.keys()):
            inode = self._durable.get(name)
            if dice is not None and dice.random() < 0.5:
                inode = now.get(name)
            if inode is not None:
                content = self._contents[inode]
                data, whole = content.synced, content.now()
                if dice is not None and whole.startswith(data):
                    data = whole[: dice.randint(len(data), len(whole))]
                (target / name).write_bytes(data)
        return target

    def after_kill(self, target: Path) -> Path:
        """Make a directory of what a next process sees; the power stays on."""
        shutil.copytree(self.path, target)
        return target

    def release(self) -> None:
        """Let go of all descriptors."""
        for content in self._contents.values():
            os.close(content.held)
        self._contents.clear()

    def _may_fail(self, call: str) -> None:
        number = len(self.calls)
        self.calls.append(call)
        fault = self.fault
        if fault is None or number < fault.at or (number > fault.at and not fault.lasting):
            return
        self.failed += 1
        if not fault.code:
            raise PowerCut
        raise OSError(fault.code, os.strerror(fault.code))

    def _drop_what_waits(self, found: os.stat_result) -> None:
        if not stat.S_ISDIR(found.st_mode):
            self._contents[found.st_ino].lost = True
            return
        now = self._names()
        for name in now.keys() | self._durable.keys():
            if now.get(name) != self._durable.get(name):
                self._limbo[name] = now.get(name)

    def _sync_names(self) -> None:
        now = self._names()
        for name in now.keys() | self._durable.keys():
            if name in self._limbo and self._limbo[name] == now.get(name):
                continue
            if name in now:
                self._durable[name] = now[name]
            else:
                del self._durable[name]

    def _names(self) -> dict[str, int]:
        return {
            entry.name: entry.inode()
            for entry in os.scandir(self.path)
            if not entry.name.endswith(".lock")
        }

    def _is_ours(self, path: Any) -> bool:
        text = os.fspath(path)
        return text.startswith(self._directory) and not text.endswith(".lock")


FULL, BROKEN, OFF = errno.ENOSPC, errno.EIO, 0


def _defaults(function: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = function.__kwdefaults__
    return defaults
