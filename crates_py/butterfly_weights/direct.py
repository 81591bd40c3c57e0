"""Bytes of one open file: out of the page cache where they are there, else past it.

A cold read through the page cache copies every byte once more, costs three times the processor
time and pushes out what other programs had there. What reads past it (O_DIRECT) wants whole
blocks in aligned memory, so it goes into a small buffer first, and from there, while it is in
the processor's cache, into its place.
"""

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import LifoQueue
from typing import Final

from butterfly_weights.arena import Arena

ALIGNMENT_BYTES: Final = 4096
"""Of offsets, sizes and memory of direct reads; no common device asks for more."""
DIRECT_BYTES_MIN: Final = 256 << 10
"""Shorter ranges are read through the page cache: headers are read in two bites."""
_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


class Bounce:
    """Aligned memory that one thread at a time reads whole blocks into.

    It is one huge page where the kernel has one: a disk takes a few hundred stretches of memory
    at once, and of scattered small pages that is a quarter of a read.
    """

    SIZE_BYTES: Final = 2 << 20

    def __init__(self) -> None:
        (twice,) = Arena([2 * self.SIZE_BYTES]).blocks
        start = -_address(twice) % self.SIZE_BYTES
        self.view = twice[start : start + self.SIZE_BYTES]
        self._address = _address(self.view)

    def copy_to(self, view: memoryview, start: int) -> None:
        """Fill the view from byte ``start``. Unlike a slice's assignment it lets other threads
        run meanwhile."""
        ctypes.memmove(_address(view), self._address + start, view.nbytes)


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


class Bounces:
    """How many ranges of a disk are read at once: more threads than this only cost."""

    def __init__(self, count: int) -> None:
        self._free: LifoQueue[Bounce | None] = LifoQueue()
        for _ in range(count):
            self._free.put(None)

    @contextmanager
    def one(self) -> Iterator[Bounce]:
        """Waits until one is free; its memory is made when it is first needed."""
        bounce = self._free.get()
        try:
            bounce = bounce or Bounce()
            yield bounce
        finally:
            self._free.put(bounce)


class DirectFile:
    """Reads a range [offset, stop) of an open file in order, a step at a time.

    ``descriptor`` must be this object's alone, as its flags are changed.
    """

    def __init__(self, descriptor: int, offset: int, stop: int, bounce: Bounce) -> None:
        self._descriptor, self._stop, self._bounce = descriptor, stop, bounce
        self._flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        self._is_direct = False
        self._may_be_direct = stop - offset >= DIRECT_BYTES_MIN
        # Else a header, read in two bites, looks like the beginning of the whole file to the
        # kernel, which then reads megabytes ahead into the page cache.
        with suppress(OSError):  # advice, which a file system need not know
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        self._window = range(0)  # what of the file is in the bounce buffer
        self._cached_until = -1
        self._probe = bytearray(1)

    def read(self, view: memoryview, offset: int) -> int:
        """Fill the beginning of the view; returns the bytes, 0 at the file's end.

        Raises OSError.
        """
        if offset in self._window:
            return self._take(view, offset)
        if self._may_be_direct and not self._is_cached(offset):
            return self._read_past_cache(view, offset)
        return self._read_through_cache(view, offset)

    def _is_cached(self, offset: int) -> bool:
        """Asked once per window, with one byte: where it is not there, asking makes the kernel
        read as much as was asked for."""
        if offset < self._cached_until:
            return True
        try:
            self._be_direct(False)
            found = os.preadv(self._descriptor, [self._probe], offset, os.RWF_NOWAIT) == 1
        except OSError as error:  # EAGAIN, or a file system that cannot tell
            if error.errno != errno.EAGAIN and error.errno not in _UNSUPPORTED:
                raise
            return False
        self._cached_until = offset + Bounce.SIZE_BYTES if found else -1
        return found

    def _read_through_cache(self, view: memoryview, offset: int) -> int:
        self._be_direct(False)
        if not self._may_be_direct:
            return os.preadv(self._descriptor, [view], offset)
        try:
            return os.preadv(self._descriptor, [view], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            self._cached_until = -1
            return self._read_past_cache(view, offset)

    def _read_past_cache(self, view: memoryview, offset: int) -> int:
        start = offset - offset % ALIGNMENT_BYTES
        wanted = -(-(self._stop - start) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        block = self._bounce.view[: min(wanted, Bounce.SIZE_BYTES)]
        try:
            self._be_direct(True)
            count = os.preadv(self._descriptor, [block], start)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._may_be_direct = False  # tmpfs, some network file systems
            return self._read_through_cache(view, offset)
        self._window = range(start, start + count)
        return self._take(view, offset) if offset in self._window else 0

    def _take(self, view: memoryview, offset: int) -> int:
        count = min(view.nbytes, self._window.stop - offset)
        self._bounce.copy_to(view[:count], offset - self._window.start)
        return count

    def _be_direct(self, direct: bool) -> None:
        if direct != self._is_direct:
            flags = self._flags | os.O_DIRECT if direct else self._flags
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags)
            self._is_direct = direct
