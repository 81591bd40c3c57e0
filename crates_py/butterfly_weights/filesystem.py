"""A model's folder on a disk."""

import os
import secrets
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from butterfly_core.errors import ModelError, SourceError
from butterfly_weights.direct import Bounces, DirectFile
from butterfly_weights.errors import LoadCancelled, NotFound, SourceChanged
from butterfly_weights.source import ObjectInfo, OnBytes, safe_name
from butterfly_weights.views import Cursor

_READS_AT_ONCE_MAX = 8
_ENTRIES_MAX = 100_000


class FilesystemSource:
    """The files directly in one folder; links may not lead out of it, but for those of a hub
    cache's snapshot, which lead into the blobs beside it."""

    etag_names_content: Final = False
    readers_wanted: Final = _READS_AT_ONCE_MAX

    def __init__(self, root: Path) -> None:
        self._root = root
        self.bounces = Bounces(_READS_AT_ONCE_MAX)

    def describe(self) -> str:
        return f"folder {self._root}"

    def entries(self) -> Mapping[str, ObjectInfo]:
        """Regular files of the folder itself, not of folders in it."""
        found = {}
        try:
            names = os.listdir(self._root)
        except FileNotFoundError:
            raise NotFound(f"{self.describe()} does not exist") from None
        except OSError as error:
            raise SourceError(f"{self.describe()} cannot be listed: {error}") from error
        if len(names) > _ENTRIES_MAX:
            raise ModelError(f"{self.describe()} has {len(names)} files; is it a model's folder?")
        for name in names:
            if (self._root / name).is_file():
                found[name] = self.stat(name)
        return found

    def stat(self, name: str) -> ObjectInfo:
        with self.opened(name) as descriptor:
            return _info(name, os.fstat(descriptor))

    def exists(self, name: str) -> bool:
        return os.path.lexists(self._root / safe_name(name))

    def read_small(self, name: str, *, bytes_max: int) -> bytes:
        with self.opened(name) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > bytes_max:
                raise ModelError(f"{name} has {size} bytes; at most {bytes_max} are expected")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                return file.read(bytes_max)

    def write_small(self, name: str, content: bytes) -> None:
        path = self._root / safe_name(name)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            _sync_folder(self._root)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise SourceError(f"{path} cannot be written: {error}") from error

    def reader(self) -> "FileReader":
        return FileReader(self)

    def close(self) -> None:
        """Nothing is kept open."""

    @contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """Descriptor of a regular file inside the folder. Raises NotFound, ModelError."""
        path = self._root / safe_name(name)
        try:
            real, root = path.resolve(strict=True), self._root.resolve(strict=True)
            if not real.is_relative_to(root) and real.parent != _blobs_of(root):
                raise ModelError(
                    f"{path} is a link to {real}, outside of the model's folder: copy the file "
                    "in (cp -L)"
                )
            # O_NONBLOCK: opening a pipe must not wait for a writer.
            descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"{path} does not exist") from None
        except OSError as error:
            raise SourceError(f"{path} cannot be opened: {error}") from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ModelError(f"{path} is not a regular file")
            yield descriptor
        finally:
            os.close(descriptor)


class FileReader:
    """Reads ranges of files; opens per range, so nothing lingers when a file is replaced."""

    def __init__(self, source: FilesystemSource) -> None:
        self._source = source
        self._closed = False

    def read_into(
        self, info: ObjectInfo, offset: int, views: Sequence[memoryview], on_bytes: OnBytes
    ) -> None:
        cursor = Cursor(views)
        stop = offset + cursor.total
        with self._source.bounces.one() as bounce, self._source.opened(info.name) as descriptor:
            _refuse_other_version(descriptor, info)
            file = DirectFile(descriptor, offset, stop, bounce)
            while cursor.done < cursor.total:
                count = self._read_some(file, info, offset + cursor.done, cursor.rest())
                cursor.advance(count)
                on_bytes(count)
            _refuse_other_version(descriptor, info)

    def _read_some(self, file: DirectFile, info: ObjectInfo, offset: int, view: memoryview) -> int:
        if self._closed:
            raise LoadCancelled(f"reading {info.name} was cancelled")
        try:
            count = file.read(view, offset)
        except OSError as error:
            raise SourceError(f"{info.name}, byte {offset}: {error}") from error
        if count == 0:
            raise SourceChanged(
                f"{info.name} ends at byte {offset}; it had {info.size} bytes when the model "
                "was opened",
                object_name=info.name,
            )
        return count

    def reset(self) -> None:
        """Each read opens the file anew anyway."""

    def interrupt(self) -> None:
        self._closed = True

    def close(self) -> None:
        """Nothing is kept open."""


def _blobs_of(root: Path) -> Path | None:
    """Where the links of ``models--org--name/snapshots/COMMIT`` lead."""
    repo = root.parent.parent
    is_snapshot = root.parent.name == "snapshots" and repo.name.startswith("models--")
    return repo / "blobs" if is_snapshot else None


def _info(name: str, status: os.stat_result) -> ObjectInfo:
    etag = f"{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ino:x}"
    return ObjectInfo(name, status.st_size, etag)


def _refuse_other_version(descriptor: int, info: ObjectInfo) -> None:
    now = _info(info.name, os.fstat(descriptor))
    if now != info:
        raise SourceChanged(
            f"{info.name} was changed: {info.size} bytes, version {info.etag}, when the model was "
            f"opened; now {now.size} bytes, version {now.etag}",
            object_name=info.name,
        )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
