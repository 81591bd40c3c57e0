"""The files of the tensor cache: ``tensors/ab/abcd…`` and ``revisions/KEY``.

Beside a tensor lies ``abcd….info``, its name, type and shape: with them its digest can be computed
from its bytes alone. It is no more believed than the tensor.
"""

import json
import math
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from butterfly_core.errors import ModelError
from butterfly_weights.destination import TensorBytes
from butterfly_weights.safetensors_header import parse_json_object
from butterfly_weights.tensors import TensorInfo

_STEP_BYTES = 4 << 20
_PINS_BYTES_MAX = 256 << 20
_INFO_BYTES_MAX = 64 << 10
_NAME = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{8}\.part)?")
_PIN = re.compile(r"([0-9a-f]{64}) (.{1,1024})")


def tensor_path(directory: Path, digest: bytes) -> Path:
    name = digest.hex()
    return directory / "tensors" / name[:2] / name


def pins_path(directory: Path, key: str) -> Path:
    return directory / "revisions" / key


class CachedFile:
    """An entry that is read; every failure only means that there is nothing."""

    def __init__(self, path: Path) -> None:
        self._descriptor = -1
        with suppress(OSError):
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with suppress(OSError):  # a folder that is only readable keeps no order of use
            os.utime(path)

    def read_into(self, offset: int, view: memoryview) -> bool:
        """Fill the view; False when the file does not have those bytes."""
        done = 0
        while done < view.nbytes:
            try:
                count = os.preadv(self._descriptor, [view[done:]], offset + done)
            except OSError:
                return False
            if not count:
                return False
            done += count
        return True

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


def info_path(path: Path) -> Path:
    """Where it is said what the tensor at this path is."""
    return path.with_name(f"{path.name}.info")


def write_tensor(
    directory: Path, digest: bytes, data: TensorBytes, info: TensorInfo | None = None
) -> None:
    """Whole or not at all, also when the machine loses power. Raises OSError."""
    path = tensor_path(directory, digest)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if info is not None:
        text = json.dumps({"name": info.name, "dtype": info.dtype, "shape": info.shape})
        info_path(path).write_text(text, encoding="utf-8")
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb", buffering=0) as file:
            for start in range(0, data.nbytes, _STEP_BYTES):
                _write_all(file.fileno(), data[start : start + _STEP_BYTES])
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
            info_path(path).unlink(missing_ok=True)
        raise


def read_info(path: Path, nbytes: int) -> TensorInfo | None:
    """What the tensor at this path is said to be; None when nothing sensible is said."""
    try:
        with info_path(path).open("rb") as file:
            raw = parse_json_object(file.read(_INFO_BYTES_MAX), path.name)
        name, dtype, shape = raw["name"], raw["dtype"], tuple(raw["shape"])
    except (OSError, ModelError, KeyError, TypeError):
        return None
    sizes_fit = all(type(size) is int and 0 <= size < 1 << 62 for size in shape)
    if not (isinstance(name, str) and isinstance(dtype, str) and sizes_fit):
        return None
    return TensorInfo(name, dtype, shape, nbytes, "", 0)


def drop(path: Path) -> None:
    """Remove a tensor and what is said of it. Raises OSError."""
    path.unlink(missing_ok=True)
    info_path(path).unlink(missing_ok=True)


def _write_all(descriptor: int, view: memoryview) -> None:
    while view.nbytes:
        view = view[os.write(descriptor, view) :]


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One file of the cache; ``used_at`` in seconds since 1970."""

    path: Path
    nbytes: int
    used_at: float


def entries_in(directory: Path) -> Iterator[CacheEntry]:
    """All tensors of a cache, and what writing left half done."""
    for path in _files(directory):
        if _NAME.fullmatch(path.name):
            with suppress(OSError):
                status = path.lstat()
                yield CacheEntry(path, status.st_size, status.st_mtime)


def drop_half_written(directory: Path) -> None:
    """Remove what a process that died was writing; only for the holder of the lock."""
    for path in _files(directory):
        is_part = path.suffix == ".part" and _NAME.fullmatch(path.name)
        is_left = path.suffix == ".info" and not path.with_suffix("").exists()
        if is_part or is_left:
            with suppress(OSError):
                path.unlink()


def _files(directory: Path) -> Iterator[Path]:
    """All that lies where tensors do. A cache may go, or be cleared, while one looks."""
    for folder in _children(directory / "tensors"):
        if len(folder.name) == 2:
            yield from _children(folder)


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def read_pins(path: Path) -> Mapping[str, bytes]:
    """Name → digest; lines that make no sense are left out, the last one of a name counts."""
    try:
        if path.stat().st_size > _PINS_BYTES_MAX:
            return {}
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return {}
    found = (_PIN.fullmatch(line) for line in lines)
    return {match[2]: bytes.fromhex(match[1]) for match in found if match}


@dataclass(frozen=True, slots=True)
class Swept:
    """What went from a cache, or would go."""

    entries: int
    nbytes: int


def sweep(directory: Path, *, used_before: float = math.inf, dry_run: bool = False) -> Swept:
    """Remove the entries last used before that moment (seconds since 1970), also of a cache in use.

    A process that has the cache open goes on: what it misses it fetches again. Raises OSError.
    """
    entries = [entry for entry in entries_in(directory) if entry.used_at < used_before]
    if not dry_run:
        for entry in entries:
            drop(entry.path)
        if used_before == math.inf:
            for path in (directory / "revisions").glob("*"):
                path.unlink(missing_ok=True)
    return Swept(len(entries), sum(entry.nbytes for entry in entries))


def clear(directory: Path) -> int:
    """Remove everything; returns the bytes freed. Raises OSError."""
    return sweep(directory).nbytes
