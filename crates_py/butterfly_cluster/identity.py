"""Who this node is, kept in its data directory: id, cluster, and the one promise it gave.

The id and the journal are one: a node id whose journal is gone never comes back, because
what it voted for and acknowledged is forgotten. ``load_or_create`` then makes a new id, and
the node joins as a new learner. The same happens when journal or snapshot are damaged. Such a
node remembers the cluster it was of: it joins that one, and neither founds another nor
promises to, because what it promised is forgotten.
"""

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from butterfly_cluster.durable_files import (
    FileLock,
    is_there,
    make_directory,
    read_if_there,
    write_durably,
)
from butterfly_cluster.founding_messages import Proposal, proposal_from_map
from butterfly_cluster.journal_format import MAGIC, DamagedLog
from butterfly_cluster.snapshot import JOURNAL_NAME, SNAPSHOT_NAME, read_log
from butterfly_cluster.together import finish_replacing
from butterfly_core.errors import ConfigError, IllegalTransition, InvalidValue, StorageError
from butterfly_core.ids import ClusterId, NodeId, node_id_from_bytes, parse_node_id, short

IDENTITY_NAME = "identity.json"
_VERSION = 2
_VERSION_WITHOUT_CHECKSUM = 1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """``founders`` are the voters of the cluster's first configuration, sorted.

    ``generation`` rises each time the cluster is recovered from a lost majority.
    ``former_cluster`` is the only one that this node may join.
    """

    node_id: NodeId
    cluster_id: ClusterId | None = None
    cluster_name: str | None = None
    founders: tuple[NodeId, ...] = ()
    promise: Proposal | None = None
    generation: int = 0
    former_cluster: ClusterId | None = None


class DataDir:
    """A locked data directory. Every change is on the disk when its method returns.

    After a write that failed nobody knows what is there. The ``problem`` stays until the process
    ends: nothing is written, so nothing is promised, any more.
    """

    def __init__(self, path: Path, lock: FileLock, identity: Identity) -> None:
        self.path, self._lock = path, lock
        self.identity = identity
        self.replaced: NodeId | None = None
        self.replaced_because = ""
        self.problem: StorageError | None = None

    def remember_promise(self, promise: Proposal | None) -> None:
        """Give a promise, or take back one that was released. Raises StorageError."""
        self._write(replace(self.identity, promise=promise))

    def remember_cluster(
        self,
        cluster_id: ClusterId,
        cluster_name: str,
        founders: tuple[NodeId, ...],
        generation: int = 0,
    ) -> None:
        """Belong to a cluster from now on. Raises StorageError, IllegalTransition."""
        if self.identity.cluster_id is not None:
            raise IllegalTransition(f"{self.path} belongs to {self.identity.cluster_id} already")
        self._write_durably(JOURNAL_NAME, MAGIC)
        me, sorted_founders = self.identity.node_id, tuple(sorted(founders))
        self._write(Identity(me, cluster_id, cluster_name, sorted_founders, generation=generation))

    def start_over(
        self, random_bytes: Callable[[int], bytes] = os.urandom, *, because: str = ""
    ) -> None:
        """Become a new node without a cluster; the old log is kept beside, under another name.

        For a person's ``--forget``; and with ``because``, what happened to the log, for a node
        that must find its way back to the same cluster. Raises StorageError.
        """
        self.replaced, self.replaced_because = self.identity.node_id, because
        former = (self.identity.cluster_id or self.identity.former_cluster) if because else None
        suffix = short(self.replaced)
        for name in (JOURNAL_NAME, SNAPSHOT_NAME):
            _set_aside(self.path / name, suffix)
        fresh = node_id_from_bytes(random_bytes(16))
        promise = self.identity.promise if because else None
        self._write(Identity(fresh, former_cluster=former, promise=promise))
        _log.error("%s", self.story)

    @property
    def story(self) -> str:
        """Why this node has another id than before, for people; empty when it has not."""
        if self.replaced is None:
            return ""
        old, fresh = short(self.replaced), short(self.identity.node_id)
        if not self.replaced_because:
            return f"node {old} was told to forget its cluster and starts over as {fresh}"
        return (
            f"{self.replaced_because}; node {old} must not vote with that and starts over as "
            f"{fresh}, which joins again as a learner. The old files are kept in {self.path}, "
            f"with .{old} behind their names"
        )

    def close(self) -> None:
        """Let another process use the directory."""
        self._lock.close()

    def write_anew(self) -> None:
        """Write what was read: an earlier process may have failed to sync it. Never raises."""
        with contextlib.suppress(StorageError):  # it is the problem then
            self._write(self.identity)

    def _write(self, identity: Identity) -> None:
        self._write_durably(IDENTITY_NAME, encode_identity(identity))
        self.identity = identity

    def _write_durably(self, name: str, data: bytes) -> None:
        if self.problem is not None:
            raise self.problem
        try:
            write_durably(self.path / name, data)
        except StorageError as error:
            self.problem = error
            raise


def load_or_create(path: Path, *, random_bytes: Callable[[int], bytes] = os.urandom) -> DataDir:
    """Open and lock a data directory; make it, and an id, where there is none.

    Raises ConfigError (in use, cannot be made) and StorageError (damaged).
    """
    try:
        make_directory(path)
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
    finish_replacing(path)
    data = read_if_there(path / IDENTITY_NAME)
    if data is None:
        fresh = Identity(node_id_from_bytes(random_bytes(16)))
        opened = DataDir(path, lock, fresh)
        for name in (JOURNAL_NAME, SNAPSHOT_NAME):
            _set_aside(path / name, f"of-nobody-{short(fresh.node_id)}")
        opened._write(fresh)
        return opened
    opened = DataDir(path, lock, decode_identity(data, path / IDENTITY_NAME))
    because = _why_not_as_before(path, opened.identity)
    if because:
        opened.start_over(random_bytes, because=because)
        return opened
    if opened.identity.cluster_id is None:
        for name in (JOURNAL_NAME, SNAPSHOT_NAME):
            _set_aside(path / name, short(opened.identity.node_id))
    opened.write_anew()
    return opened


def _why_not_as_before(path: Path, identity: Identity) -> str:
    """What happened to the log, if this id must not be used with it; empty when nothing."""
    journal = read_if_there(path / JOURNAL_NAME)
    if identity.cluster_id is None:
        # a crash while joining leaves a bare one; another one has voted, for whom is not known
        unused = journal is None or journal == MAGIC
        return "" if unused else f"{path / IDENTITY_NAME} is older than {path / JOURNAL_NAME}"
    if journal is None:
        return f"{path / JOURNAL_NAME} is missing"
    try:
        read_log(path)
    except DamagedLog as error:
        return str(error)
    return ""


def _set_aside(path: Path, suffix: str) -> None:
    try:
        if is_there(path):
            path.rename(path.with_name(f"{path.name}.{suffix}"))
    except OSError as error:
        raise StorageError(f"cannot rename {path}: {error.strerror or error}") from error


def encode_identity(identity: Identity) -> bytes:
    """As a file: JSON with a checksum."""
    fields: dict[str, Any] = {
        "version": _VERSION,
        "generation": identity.generation,
        "former_cluster": identity.former_cluster,
        "node_id": identity.node_id,
        "cluster_id": identity.cluster_id,
        "cluster_name": identity.cluster_name,
        "founders": list(identity.founders),
        "promise": identity.promise and identity.promise.to_map(),
    }
    fields["checksum"] = _checksum(fields)
    return json.dumps(fields, indent=1).encode() + b"\n"


def _checksum(fields: Mapping[str, Any]) -> str:
    """Over all fields but itself, so that a person's editor may change the spaces."""
    rest = {key: value for key, value in fields.items() if key != "checksum"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True).encode()):08x}"


def decode_identity(data: bytes, path: Path) -> Identity:
    """Read what ``encode_identity`` wrote, or its first version. Raises StorageError."""
    try:
        fields = json.loads(data)
        if fields["version"] not in (_VERSION, _VERSION_WITHOUT_CHECKSUM):
            raise InvalidValue(f"version {fields['version']!r}; this program reads {_VERSION}")
        sealed = fields["version"] == _VERSION or "checksum" in fields
        if sealed and fields["checksum"] != _checksum(fields):
            raise InvalidValue("its checksum does not match")
        cluster_id, promise = fields["cluster_id"], fields["promise"]
        former = fields.get("former_cluster")
        return Identity(
            node_id=parse_node_id(fields["node_id"]),
            cluster_id=None if cluster_id is None else ClusterId(parse_node_id(cluster_id)),
            cluster_name=fields["cluster_name"],
            founders=tuple(parse_node_id(founder) for founder in fields["founders"]),
            promise=None if promise is None else proposal_from_map(promise),
            generation=int(fields.get("generation", 0)),
            former_cluster=None if former is None else ClusterId(parse_node_id(former)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{path} is damaged: {error}. Move the data_dir away, so that this node joins "
            "again under a new id"
        ) from error
