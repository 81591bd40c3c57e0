"""What lies in a node's data_dir, and whether a node is using it now."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

CACHE_FOLDER = "cache"


def cache_folder(data_dir: Path) -> Path:
    """Where a node keeps the weights it has loaded."""
    return data_dir / CACHE_FOLDER


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below; 0 when there is no such folder. Links are not followed."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # a cache may drop a file at any moment
                continue
    return total


def is_in_use(data_dir: Path) -> bool:
    """True when a process holds one of the locks in the folder: its identity's or the journal's."""
    return any(_is_held(lock) for lock in _locks(data_dir))


def _locks(data_dir: Path) -> Iterator[Path]:
    for pattern in ("lock", "*.lock", "*/lock", "*/*.lock"):
        yield from data_dir.glob(pattern)


def _is_held(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
