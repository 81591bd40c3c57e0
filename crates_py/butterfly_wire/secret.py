"""The cluster secret: whoever holds it belongs to the cluster.

A file of one line, or two while the secret is being changed: the first line mints the
certificates of this node, both are accepted from others. Lines that begin with ``# `` are
comments.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from butterfly_core.errors import ConfigError

SECRET_BYTES_MIN = 16
_FILE_BYTES_MAX = 4096
_COMMENT = b"# "


@dataclass(frozen=True, slots=True)
class ClusterSecret:
    """The secret that mints, and one more that is accepted during a change."""

    current: bytes = field(repr=False)
    previous: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if any(len(secret) < SECRET_BYTES_MIN for secret in self.accepted):
            raise ConfigError(
                f"a cluster secret has at least {SECRET_BYTES_MIN} characters; "
                "make one with: butterfly-admin secret create"
            )

    @property
    def accepted(self) -> tuple[bytes, ...]:
        """All secrets a peer may hold, the minting one first."""
        return (self.current,) if self.previous is None else (self.current, self.previous)


def load_secret(path: Path) -> ClusterSecret:
    """Read a secret file.

    Raises ConfigError when the file is missing, readable for others than its owner, or does
    not hold one or two lines of at least 16 characters.
    """
    _, lines = lines_of(read_secret_file(path))
    if len(lines) not in (1, 2):
        raise ConfigError(
            f"cluster secret file {path} has {len(lines)} lines with text; it must have one, or "
            "two while the secret is changed (the one that mints first)"
        )
    try:
        return ClusterSecret(lines[0], lines[1] if len(lines) == 2 else None)
    except ConfigError as error:
        raise ConfigError(f"cluster secret file {path}: {error}") from None


def read_secret_file(path: Path) -> bytes:
    """What is in a small file that its owner alone may use. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"cluster secret file {path}: {error.strerror}; make one with: "
            f"butterfly-admin secret create {path}"
        ) from error
    if mode & 0o077:
        raise ConfigError(
            f"cluster secret file {path} has mode {mode:04o}, so others than its owner can use "
            f"it; run: chmod 600 {path}"
        )
    if len(content) > _FILE_BYTES_MAX:
        raise ConfigError(f"cluster secret file {path} is longer than {_FILE_BYTES_MAX} bytes")
    return content


def lines_of(content: bytes) -> tuple[list[bytes], list[bytes]]:
    """The comments of a secret file (they begin with ``# ``), and its lines with text."""
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    comments = [line for line in lines if line.startswith(_COMMENT)]
    return comments, [line for line in lines if not line.startswith(_COMMENT)]


def insecure_secret(cluster_name: str) -> ClusterSecret:
    """A secret that anybody who knows the cluster's name can make.

    It keeps clusters of different names apart and nothing more: for loopback, and for
    networks where ``insecure = true`` was written by hand.
    """
    return ClusterSecret(derive_key(cluster_name.encode(), b"butterfly insecure v1"))


def derive_key(secret: bytes, purpose: bytes) -> bytes:
    """32 bytes for one purpose out of a secret: HKDF-SHA256 (RFC 5869) without salt."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose).derive(secret)
