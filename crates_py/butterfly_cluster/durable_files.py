"""Small files that survive a power cut, and a lock that keeps a second process out.

A file is written beside its place, forced to the disk, renamed over the old one, and the
directory is forced too: after a crash the reader finds the old content or the new one.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from butterfly_core.errors import ConfigError, StorageError


def write_durably(path: Path, data: bytes, *, sync_file: Callable[[int], None] = os.fsync) -> None:
    """Replace the file's content; on return it is on the disk. Raises StorageError."""
    fresh = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            sync_file(descriptor)
        finally:
            os.close(descriptor)
        os.rename(fresh, path)
        sync_directory(path.parent, sync_file)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(fresh)  # on a full disk half a file is in the way
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free space or repair the disk, "
            "then start the node again"
        ) from error


def name_sync(sync_file: Callable[[int], None]) -> Callable[[int], None]:
    """What forces new names to the disk where ``sync_file`` forces content.

    ``fdatasync`` of a directory may leave out a name that was just made (ext4 does).
    """
    return os.fsync if sync_file is os.fdatasync else sync_file


def read_if_there(path: Path) -> bytes | None:
    """Return the content, or None when there is no such file. Raises StorageError."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def is_there(path: Path) -> bool:
    """True when there is such a file. Raises StorageError when that cannot be known."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    return True


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory that is there after a power cut too; one that is there is fine.

    Raises OSError. Where the directory above may not be read, somebody else made this one.
    """
    made = [parent for parent in (path, *path.parents) if not parent.exists()]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for directory in {path, *made}:
        with contextlib.suppress(PermissionError):
            sync_directory(directory.parent)


def close_quietly(descriptor: int) -> None:
    """Close what was synced, or is given up; Linux frees the number whatever it answers."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def sync_directory(directory: Path, sync_file: Callable[[int], None] = os.fsync) -> None:
    """Force new and renamed names in the directory to the disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


class FileLock:
    """An exclusive lock on a file, held until ``close`` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Take the lock at once. Raises ConfigError when another holder has it."""
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror or error}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise ConfigError(
                f"{path.parent} is in use by another process; "
                "stop it, or give this node a data_dir of its own"
            ) from error

    def close(self) -> None:
        """Let go; safe to call twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            close_quietly(descriptor)
