"""What lies in a node's data_dir, and whether a node is using it now."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

CACHE_FOLDER = "cache"


def cache_folder(data_dir: Path) -> Path:
    """Where a node keeps the weights it has loaded."""
    return data_dir / CACHE_FOLDER


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
