"""What lies in a node's data_dir, and whether a node is using it now."""

import fcntl
import os
from pathlib import Path

CACHE_FOLDER = "cache"
LOCK_FILE = "lock"


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
    """True when a node process holds the lock of the folder."""
    try:
        descriptor = os.open(data_dir / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
