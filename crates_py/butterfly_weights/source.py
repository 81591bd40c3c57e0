"""Where a model's files come from, behind one small interface."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from butterfly_core.errors import ConfigError, ModelError

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object (file) of a source; ``etag`` (without quotes) changes whenever its bytes do."""

    name: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How patient a source is, and how it gets out of the house.

    ``tries_max`` counts the first one. A stall is that many seconds without a byte. ``proxy_url``
    and ``ca_file`` default to the environment (HTTPS_PROXY, NO_PROXY, AWS_CA_BUNDLE).
    """

    connect_timeout_seconds: float = 10.0
    stall_timeout_seconds: float = 10.0
    tries_max: int = 8
    backoff_first_seconds: float = 0.1
    backoff_max_seconds: float = 10.0
    requests_at_once_max: int = 16
    proxy_url: str | None = None
    ca_file: Path | None = None
    embedded_root: Path | None = None


class RangeReader(Protocol):
    """Reads byte ranges; one per thread."""

    def read_into(
        self, info: ObjectInfo, offset: int, views: Sequence[memoryview], on_bytes: OnBytes
    ) -> None:
        """Fill the views, one after the other, with consecutive bytes from ``offset``.

        ``on_bytes(n)`` is told of each n bytes that have landed; what it raises ends the read.
        Broken connections are mended inside, resuming at the byte reached. Raises SourceChanged
        when the object is no longer the version of ``info``, and SourceError.
        """
        ...

    def reset(self) -> None:
        """Forget the connection, so that the next read takes another path."""
        ...

    def interrupt(self) -> None:
        """From another thread: a blocked read ends with LoadCancelled, and so do later ones."""
        ...

    def close(self) -> None:
        """Called once nobody reads any more."""
        ...


class Source(Protocol):
    """A folder of a model's files."""

    @property
    def etag_names_content(self) -> bool:
        """True when the same ETag means the same bytes on every machine (S3, not an mtime)."""
        ...

    def describe(self) -> str: ...

    def entries(self) -> Mapping[str, ObjectInfo] | None:
        """All objects by name; None when the source does not allow listing."""
        ...

    def read_small(self, name: str, *, bytes_max: int) -> bytes:
        """A whole object. Raises NotFound, ModelError when larger, SourceError."""
        ...

    def stat(self, name: str) -> ObjectInfo:
        """Raises NotFound, SourceError."""
        ...

    def exists(self, name: str) -> bool: ...

    def write_small(self, name: str, content: bytes) -> None:
        """Put one object, whole or not at all. Raises SourceError."""
        ...

    def reader(self) -> RangeReader: ...

    def close(self) -> None: ...


def safe_name(name: str) -> str:
    """An object's name that stays inside its source. Raises ModelError for any other."""
    path = PurePosixPath(name)
    if (
        not name
        or len(name) > 1024
        or path.is_absolute()
        or ".." in path.parts
        or str(path) != name
        or any(character in name for character in "\\\0\r\n")
    ):
        raise ModelError(f"{name!r} is not a plain file name inside the model's folder")
    return name


def open_source(
    source_type: str,
    source_path: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    options: SourceOptions | None = None,
) -> Source:
    """Open ``s3`` (bucket/prefix, or s3://bucket/prefix), ``filesystem`` (a folder) or
    ``embedded`` (the name of a folder in ``options.embedded_root``).

    Contacts nobody yet. Raises ConfigError.
    """
    chosen = options or SourceOptions()
    if source_type == "s3":
        # Imported when asked for: botocore alone costs more to load than all of this package.
        from butterfly_weights.s3 import S3Source

        return S3Source.of_path(
            source_path, endpoint_url=endpoint_url, region=region, options=chosen
        )
    if endpoint_url is not None:
        raise ConfigError(f"endpoint_url belongs to source_type s3, not to {source_type!r}")
    from butterfly_weights.filesystem import FilesystemSource

    if source_type == "filesystem":
        return FilesystemSource(Path(source_path))
    if source_type == "embedded":
        if chosen.embedded_root is None:
            raise ConfigError("source_type embedded needs the folder of the packaged models")
        root = chosen.embedded_root / safe_name(source_path)
        if not root.is_dir():
            known = sorted(p.name for p in chosen.embedded_root.glob("*") if p.is_dir())
            raise ConfigError(f"no model {source_path!r} ships with this package; known: {known}")
        return FilesystemSource(root)
    raise ConfigError(f"source_type {source_type!r} is not one of s3, filesystem, embedded")
