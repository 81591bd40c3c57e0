"""Tensors kept on the local disk, named by their digests, written behind the load.

A cache must never stop a start: whatever goes wrong with the disk, it stops caching, says so
(``notes``) and the load goes on. What it gives back is proven by the reader, so a damaged or
foreign file costs a fetch and no more.
"""

import fcntl
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from butterfly_weights.cache_files import (
    CachedFile,
    drop,
    drop_half_written,
    entries_in,
    pins_path,
    read_pins,
    tensor_path,
    write_tensor,
)
from butterfly_weights.destination import TensorBytes
from butterfly_weights.scrubbing import Scrubber
from butterfly_weights.tensors import TensorInfo

_QUEUE_MAX = 1 << 20
_CLOCK_STEP_SECONDS = 0.05
"""By so much the time that a file system notes may be behind."""
_KEY = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Of this process: tensors and bytes written, waiting, and not taken; bytes read again by
    the scrub, and entries it dropped as ``rotten``."""

    written: int
    written_bytes: int
    waiting: int
    skipped: int
    scrubbed_bytes: int = 0
    rotten: int = 0


@dataclass(frozen=True, slots=True)
class _Offer:
    name: str
    digest: bytes
    data: TensorBytes
    pin: str | None
    info: TensorInfo | None


class TensorCache:
    """One folder. ``bytes_max`` 0 is no limit but the disk's: ``free_bytes_min`` stay free.
    ``scrub_bytes_per_second`` 0 is no scrub."""

    def __init__(
        self,
        directory: Path,
        bytes_max: int = 0,
        *,
        free_bytes_min: int = 1 << 30,
        scrub_bytes_per_second: int = 0,
    ) -> None:
        self._directory, self._bytes_max, self._free_min = directory, bytes_max, free_bytes_min
        self._queue: deque[_Offer] = deque()
        self._changed = threading.Condition()
        self._busy = self._closing = False
        self._written = self._written_bytes = self._skipped = 0
        self._notes: list[str] = []
        self._protected_since = 0.0
        self.protect_from_now()
        self._lock_file = self._take_lock()
        self._writer = threading.Thread(
            target=self._write_behind, name="butterfly-cache", daemon=True
        )
        self._writer.start()
        may_scrub = self._lock_file is not None and scrub_bytes_per_second > 0
        self._scrubber = Scrubber(directory, scrub_bytes_per_second) if may_scrub else None

    def protect_from_now(self) -> None:
        """Another model is loaded from here on: only what is used now makes no room for others."""
        self._protected_since = time.time() - _CLOCK_STEP_SECONDS

    @property
    def notes(self) -> tuple[str, ...]:
        """Why it does not write (any more), for people."""
        with self._changed:
            return tuple(self._notes)

    def statistics(self) -> CacheStatistics:
        with self._changed:
            waiting = len(self._queue) + self._busy
            scrubbed, rotten = self._scrubber.counts if self._scrubber else (0, 0)
            return CacheStatistics(
                self._written, self._written_bytes, waiting, self._skipped, scrubbed, rotten
            )

    def holds(self, digest: bytes, nbytes: int) -> bool:
        """True when there is a file of that name and size; its bytes are still to be proven."""
        return self.size_of(digest) == nbytes

    def size_of(self, digest: bytes) -> int:
        """Bytes of an entry; 0 when there is none."""
        try:
            return tensor_path(self._directory, digest).stat().st_size
        except OSError:
            return 0

    @contextmanager
    def opened(self, digest: bytes) -> Iterator[CachedFile]:
        """An entry to read; marks it as used. A missing one reads nothing."""
        file = CachedFile(tensor_path(self._directory, digest))
        try:
            yield file
        finally:
            file.close()

    def discard(self, digest: bytes) -> None:
        """Remove an entry that turned out wrong."""
        try:
            drop(tensor_path(self._directory, digest))
        except OSError as error:
            self._note(f"a damaged file cannot be removed from the cache: {error}")

    def pinned(self, key: str) -> Mapping[str, bytes]:
        """Tensor names and their digests as once computed for this version of a source."""
        return read_pins(pins_path(self._directory, key)) if _KEY.fullmatch(key) else {}

    def offer(
        self,
        name: str,
        digest: bytes,
        data: TensorBytes,
        *,
        pin: str | None = None,
        info: TensorInfo | None = None,
    ) -> None:
        """Have a proven tensor written when there is time. Never blocks, copies nothing.

        ``pin`` also remembers the name's digest for that source version (``pinned``). ``info``
        lets the scrub prove the entry; without it the entry is proven when it is used.
        """
        with self._changed:
            if self._lock_file is None or self._closing or len(self._queue) >= _QUEUE_MAX:
                self._skipped += 1
                return
            self._queue.append(_Offer(name, digest, data, pin, info))
            self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        """Wait until all that was offered is on the disk; False when time was up."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._queue and not self._busy, timeout=timeout_seconds
            )

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Finish the entry being written, drop the rest, release the folder."""
        with self._changed:
            self._closing = True
            self._skipped += len(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        if self._scrubber is not None:
            self._scrubber.stop(timeout_seconds)
        self._writer.join(timeout_seconds)
        self._release_lock()

    def _take_lock(self) -> int | None:
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self._directory / "lock"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            self._notes.append(f"the cache {self._directory} is only read: {error}")
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            self._notes.append(
                f"the cache {self._directory} is only read: another process writes to it"
            )
            return None
        return descriptor

    def _release_lock(self) -> None:
        descriptor, self._lock_file = self._lock_file, None
        if descriptor is not None:
            os.close(descriptor)

    def _note(self, text: str) -> None:
        with self._changed:
            self._notes.append(text)

    def _write_behind(self) -> None:
        if self._lock_file is not None:
            drop_half_written(self._directory)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closing)
                if self._closing:
                    return
                offer = self._queue.popleft()
                self._busy = True
            try:
                self._write(offer)
            except OSError as error:
                self._stop_caching(error)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _write(self, offer: _Offer) -> None:
        if not self.holds(offer.digest, offer.data.nbytes):
            if not self._make_room(offer.data.nbytes):
                with self._changed:
                    self._skipped += 1
                return
            write_tensor(self._directory, offer.digest, offer.data, offer.info)
            with self._changed:
                self._written += 1
                self._written_bytes += offer.data.nbytes
        if offer.pin and _KEY.fullmatch(offer.pin):
            path = pins_path(self._directory, offer.pin)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{offer.digest.hex()} {offer.name}\n")

    def _make_room(self, nbytes: int) -> bool:
        """Remove the entries used longest ago; none that the present model has used, or one
        larger than the cache would push itself out while it loads."""
        system = os.statvfs(self._directory)
        if system.f_bavail * system.f_frsize - nbytes < self._free_min:
            raise OSError(f"less than {self._free_min} bytes of the disk would stay free")
        if not self._bytes_max:
            return True
        entries = sorted(entries_in(self._directory), key=lambda entry: entry.used_at)
        total = sum(entry.nbytes for entry in entries)
        for entry in entries:
            if total + nbytes <= self._bytes_max or entry.used_at >= self._protected_since:
                break
            drop(entry.path)
            total -= entry.nbytes
        return total + nbytes <= self._bytes_max

    def _stop_caching(self, error: OSError) -> None:
        with self._changed:
            self._notes.append(f"stopped caching in {self._directory}: {error}")
            self._skipped += len(self._queue) + 1
            self._queue.clear()
        self._release_lock()
