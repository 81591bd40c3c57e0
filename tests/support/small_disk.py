"""A disk that is really full: a small tmpfs, and ballast that takes what is left of it."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.needs import need

BALLAST = "ballast"


@contextlib.contextmanager
def small_disk(place: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of this size at ``place``; unmounted afterwards, also while in use."""
    need(os.geteuid() == 0 and shutil.which("mount") is not None, "root, to mount a small disk")
    place.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"mode=0700,size={size_bytes}", "tmpfs", str(place)]
    need(subprocess.run(mount, check=False).returncode == 0, "the right to mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> None:
    """Take all the space that is left on the disk."""
    with contextlib.suppress(OSError), (place / BALLAST).open("ab", buffering=0) as file:
        while True:
            file.write(b"x" * 512)


def free(place: Path) -> None:
    """Give back what ``fill`` took."""
    (place / BALLAST).unlink()
