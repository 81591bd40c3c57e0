"""Where a model's files come from, behind one small interface."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from butterfly_core.errors import ConfigError, ModelError
from butterfly_weights.errors import shown

OnBytes = Callable[[int], None]


def tell_nobody(_count: int) -> None:
    """An ``OnBytes`` for what is no part of a load's progress: headers, small objects."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object (file) of a source; ``etag`` (without quotes) changes whenever its bytes do."""

    name: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How patient a source is, and how it gets out of the house.

    ``tries_max`` counts the first one. A stall is that many seconds without a byte. As many
    requests as ``requests_at_once_first`` are under way at the beginning, more (up to ``_max``)
    while more of them bring more bytes. ``proxy_url`` and ``ca_file`` default to the environment
    (HTTPS_PROXY, NO_PROXY, AWS_CA_BUNDLE), and ``hub_offline`` to what
    HF_HUB_OFFLINE says.
    """

    connect_timeout_seconds: float = 10.0
    stall_timeout_seconds: float = 10.0
    tries_max: int = 8
    backoff_first_seconds: float = 0.1
    backoff_max_seconds: float = 10.0
    requests_at_once_first: int = 3
    requests_at_once_max: int = 32
    proxy_url: str | None = None
    ca_file: Path | None = None
    embedded_root: Path | None = None
    hub_offline: bool | None = None


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

    @property
    def readers_wanted(self) -> int:
        """How many readers bring it to its speed, as far as is known now; more only cost."""
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


@runtime_checkable
class Pinned(Protocol):
    """A source that reads one version of the whole folder, whatever its name comes to mean."""

    def version(self) -> str:
        """The version's name, the same on every machine. Raises NotFound, SourceError."""
        ...

    def pinned_path(self) -> str:
        """A ``source_path`` that means this very version. Raises as ``version``."""
        ...


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
        raise ModelError(f"{shown(name)} is not a plain file name inside the model's folder")
    return name


SOURCE_TYPES = ("s3", "filesystem", "http", "huggingface", "embedded")


def open_source(
    source_type: str,
    source_path: str,
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    options: SourceOptions | None = None,
) -> Source:
    """Open ``s3`` (bucket/prefix, or s3://bucket/prefix), ``filesystem`` (a folder), ``http``
    (a folder's URL), ``huggingface`` (org/name@revision; in the local hub cache alone when
    HF_HUB_OFFLINE is set) or ``embedded`` (the name of a folder in ``options.embedded_root``).

    Contacts nobody yet. Raises ConfigError, and NotFound for what should be on this disk.
    """
    chosen = options or SourceOptions()
    if endpoint_url is not None and source_type not in ("s3", "huggingface"):
        raise ConfigError(
            f"endpoint_url belongs to source_type s3 and huggingface, not to {source_type!r}"
        )
    # Each is imported when asked for: botocore alone costs more to load than all of this package.
    if source_type == "s3":
        from butterfly_weights.s3 import S3Source

        return S3Source.of_path(
            source_path, endpoint_url=endpoint_url, region=region, options=chosen
        )
    if source_type == "http":
        from butterfly_weights.web import WebSource

        return WebSource(source_path, chosen)
    if source_type == "huggingface":
        return _open_hub(source_path, endpoint_url, chosen)
    if source_type == "filesystem":
        return _open_folder(Path(source_path))
    if source_type == "embedded":
        return _open_embedded(source_path, chosen)
    raise ConfigError(f"source_type {source_type!r} is not one of {', '.join(SOURCE_TYPES)}")


def _open_hub(path: str, endpoint_url: str | None, options: SourceOptions) -> Source:
    from butterfly_weights.addresses import parse_hub_name
    from butterfly_weights.hub_cache import cache_folder, is_offline, open_offline

    name = parse_hub_name(path)
    if is_offline() if options.hub_offline is None else options.hub_offline:
        return open_offline(name, cache_folder())
    from butterfly_weights.hub import HubSource

    return HubSource(name, endpoint_url=endpoint_url, options=options)


def _open_folder(folder: Path) -> Source:
    from butterfly_weights.filesystem import FilesystemSource
    from butterfly_weights.hub_cache import is_repo_folder, snapshot_of

    return FilesystemSource(snapshot_of(folder) if is_repo_folder(folder) else folder)


def _open_embedded(name: str, options: SourceOptions) -> Source:
    from butterfly_weights.filesystem import FilesystemSource

    if options.embedded_root is None:
        raise ConfigError("source_type embedded needs the folder of the packaged models")
    root = options.embedded_root / safe_name(name)
    if not root.is_dir():
        known = sorted(p.name for p in options.embedded_root.glob("*") if p.is_dir())
        raise ConfigError(f"no model {name!r} ships with this package; known: {known}")
    return FilesystemSource(root)
