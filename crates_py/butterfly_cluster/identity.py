"""Who this node is, kept in its data directory: id, cluster, and the one promise it gave.

The id and the journal are one: a node id whose journal is gone never comes back, because
what it voted for and acknowledged is forgotten. ``load_or_create`` then makes a new id, and
the node joins as a new learner.
"""

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from butterfly_cluster.durable_files import FileLock, read_if_there, write_durably
from butterfly_cluster.founding_messages import Proposal, proposal_from_map
from butterfly_cluster.journal import MAGIC
from butterfly_cluster.snapshot import JOURNAL_NAME, SNAPSHOT_NAME
from butterfly_core.errors import ConfigError, IllegalTransition, InvalidValue, StorageError
from butterfly_core.ids import ClusterId, NodeId, node_id_from_bytes, parse_node_id, short

IDENTITY_NAME = "identity.json"
_VERSION = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """``founders`` are the voters of the cluster's first configuration, sorted."""

    node_id: NodeId
    cluster_id: ClusterId | None = None
    cluster_name: str | None = None
    founders: tuple[NodeId, ...] = ()
    promise: Proposal | None = None


class DataDir:
    """A locked data directory. Every change is on the disk when its method returns."""

    def __init__(self, path: Path, lock: FileLock, identity: Identity) -> None:
        self.path, self._lock = path, lock
        self.identity = identity
        self.replaced: NodeId | None = None

    def remember_promise(self, promise: Proposal | None) -> None:
        """Give a promise, or take back one that was released. Raises StorageError."""
        self._write(replace(self.identity, promise=promise))

    def remember_cluster(
        self, cluster_id: ClusterId, cluster_name: str, founders: tuple[NodeId, ...]
    ) -> None:
        """Belong to a cluster from now on. Raises StorageError, IllegalTransition."""
        if self.identity.cluster_id is not None:
            raise IllegalTransition(f"{self.path} belongs to {self.identity.cluster_id} already")
        write_durably(self.path / JOURNAL_NAME, MAGIC)
        self._write(
            Identity(self.identity.node_id, cluster_id, cluster_name, tuple(sorted(founders)))
        )

    def start_over(self, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        """Become a new node without a cluster; the old log is kept beside, under another name.

        For a damaged journal, and for a person's ``--forget``. Raises StorageError.
        """
        self.replaced = self.identity.node_id
        suffix = short(self.replaced)
        for name in (JOURNAL_NAME, SNAPSHOT_NAME):
            _set_aside(self.path / name, suffix)
        self._write(Identity(node_id_from_bytes(random_bytes(16))))
        _log.warning("node %s starts over as %s", suffix, short(self.identity.node_id))

    def close(self) -> None:
        """Let another process use the directory."""
        self._lock.close()

    def _write(self, identity: Identity) -> None:
        write_durably(self.path / IDENTITY_NAME, _encode(identity))
        self.identity = identity


def load_or_create(path: Path, *, random_bytes: Callable[[int], bytes] = os.urandom) -> DataDir:
    """Open and lock a data directory; make it, and an id, where there is none.

    Raises ConfigError (in use, cannot be made) and StorageError (damaged).
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data_dir {path} cannot be made: {error.strerror or error}; "
            "choose a directory that this user may write"
        ) from error
    lock = FileLock(path / "node.lock")
    try:
        return _opened(path, lock, random_bytes)
    except BaseException:
        lock.close()
        raise


def _opened(path: Path, lock: FileLock, random_bytes: Callable[[int], bytes]) -> DataDir:
    data = read_if_there(path / IDENTITY_NAME)
    if data is None:
        fresh = Identity(node_id_from_bytes(random_bytes(16)))
        opened = DataDir(path, lock, fresh)
        for name in (JOURNAL_NAME, SNAPSHOT_NAME):
            _set_aside(path / name, f"of-nobody-{short(fresh.node_id)}")
        opened._write(fresh)
        return opened
    opened = DataDir(path, lock, _decode(data, path / IDENTITY_NAME))
    has_journal = (path / JOURNAL_NAME).exists()
    if has_journal != (opened.identity.cluster_id is not None):
        if opened.identity.cluster_id is None:
            _set_aside(path / JOURNAL_NAME, short(opened.identity.node_id))
        else:
            opened.start_over(random_bytes)
    return opened


def _set_aside(path: Path, suffix: str) -> None:
    try:
        if path.exists():
            path.rename(path.with_name(f"{path.name}.{suffix}"))
    except OSError as error:
        raise StorageError(f"cannot rename {path}: {error.strerror or error}") from error


def _encode(identity: Identity) -> bytes:
    fields: dict[str, Any] = {
        "version": _VERSION,
        "node_id": identity.node_id,
        "cluster_id": identity.cluster_id,
        "cluster_name": identity.cluster_name,
        "founders": list(identity.founders),
        "promise": identity.promise and identity.promise.to_map(),
    }
    return json.dumps(fields, indent=1).encode() + b"\n"


def _decode(data: bytes, path: Path) -> Identity:
    try:
        fields = json.loads(data)
        if fields["version"] != _VERSION:
            raise InvalidValue(f"version {fields['version']!r}; this program reads {_VERSION}")
        cluster_id, promise = fields["cluster_id"], fields["promise"]
        return Identity(
            node_id=parse_node_id(fields["node_id"]),
            cluster_id=None if cluster_id is None else ClusterId(parse_node_id(cluster_id)),
            cluster_name=fields["cluster_name"],
            founders=tuple(parse_node_id(founder) for founder in fields["founders"]),
            promise=None if promise is None else proposal_from_map(promise),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} is damaged: {error}. Move the data_dir away, so that this node joins "
            "again under a new id"
        ) from error
