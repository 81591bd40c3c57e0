"""Reads the cache again, slowly and for ever, so that rot on the disk is found before a start.

What is damaged is dropped and fetched anew when it is needed. Entries of which nothing says what
they are stay: they are proven when they are used.
"""

import logging
import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from butterfly_weights.cache_files import drop, entries_in, read_info
from butterfly_weights.merkle import LEAF_BYTES, LeafHasher, tensor_digest

log = logging.getLogger(__name__)

ROUND_PAUSE_SECONDS: Final = 600.0
_STEP_BYTES: Final = 1 << 20

assert LEAF_BYTES % _STEP_BYTES == 0


class Scrubber:
    """One thread; the holder of the cache's lock runs it."""

    def __init__(
        self,
        directory: Path,
        bytes_per_second: int,
        *,
        round_pause_seconds: float = ROUND_PAUSE_SECONDS,
        stopping: threading.Event | None = None,
    ) -> None:
        self._directory, self._rate = directory, bytes_per_second
        self._pause_seconds = round_pause_seconds
        self._stopping = stopping or threading.Event()
        self._lock = threading.Lock()
        self._scrubbed_bytes = self._rotten = 0
        self._thread = threading.Thread(target=self._run, name="butterfly-scrub", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """Bytes read again, and entries dropped."""
        with self._lock:
            return self._scrubbed_bytes, self._rotten

    def stop(self, timeout_seconds: float) -> None:
        self._stopping.set()
        self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            self._round()
            if self._stopping.wait(self._pause_seconds):
                return

    def _round(self) -> None:
        """Each entry once, from a random one on: a node that restarts often reaches all of them."""
        paths = sorted(entry.path for entry in entries_in(self._directory))
        first = secrets.randbelow(len(paths)) if paths else 0
        for path in (*paths[first:], *paths[:first]):
            if self._stopping.is_set():
                return
            if is_sound(path, self._spend) is False and not self._stopping.is_set():
                self._drop(path)

    def _drop(self, path: Path) -> None:
        log.warning("the cached tensor %s is damaged on the disk; it is dropped", path.name[:16])
        with suppress(OSError):  # then the next round tries again, and no load believes it
            drop(path)
        with self._lock:
            self._rotten += 1

    def _spend(self, count: int) -> bool:
        with self._lock:
            self._scrubbed_bytes += count
        return self._stopping.wait(count / self._rate)


def is_sound(path: Path, on_bytes: Callable[[int], bool] = lambda _: False) -> bool | None:
    """Whether a cached tensor's bytes have the digest that is its name; None when that cannot be
    told: it is gone, nothing says what it is, or ``on_bytes`` said True, which means stop."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        nbytes = os.fstat(descriptor).st_size
        info = read_info(path, nbytes)
        leaves = _leaves(descriptor, nbytes, on_bytes) if info else None
    except OSError as error:
        log.warning("the cached tensor %s cannot be read: %s", path.name[:16], error)
        return False
    finally:
        os.close(descriptor)
    if info is None or leaves is None:
        return None
    return tensor_digest(info.name, info.dtype, info.shape, nbytes, leaves).hex() == path.name


def _leaves(descriptor: int, nbytes: int, on_bytes: Callable[[int], bool]) -> list[bytes] | None:
    """Digests of the leaves as the disk has them, past the page cache; None to stop."""
    found: list[bytes] = []
    os.posix_fadvise(descriptor, 0, nbytes, os.POSIX_FADV_DONTNEED)
    for start in range(0, nbytes, LEAF_BYTES):
        hasher = LeafHasher()
        for offset in range(start, min(start + LEAF_BYTES, nbytes), _STEP_BYTES):
            step = os.pread(descriptor, _STEP_BYTES, offset)
            hasher.update(step)
            os.posix_fadvise(descriptor, offset, len(step), os.POSIX_FADV_DONTNEED)
            if on_bytes(len(step)):
                return None
        found.append(hasher.digest())
    return found
