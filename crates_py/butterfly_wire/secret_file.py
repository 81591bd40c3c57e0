"""Makes the cluster secret's file and changes it in three steps, each one atomic.

``add``: the new secret is accepted, the old one still mints. ``switch``: the new one mints, the
old one is still accepted. ``finish``: the old one is dropped. Every node must be at a step
before any node takes the next, then nodes at neighbouring steps always accept each other.
At which step a file is stands in a comment in it, so that no step is taken twice.
"""

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal, get_args

from butterfly_core.errors import ConfigError
from butterfly_wire.secret import ClusterSecret, lines_of, load_secret, read_secret_file

Stage = Literal["add", "switch", "finish"]
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
_SECRET_BYTES: Final = 32
_ADDED: Final = b"# change: the second secret is the new one; next: switch"
_SWITCHED: Final = b"# change: the second secret is the old one; next: finish"


def new_secret() -> str:
    """256 random bits as hexadecimal digits."""
    return secrets.token_hex(_SECRET_BYTES)


def create_secret_file(path: Path) -> None:
    """Make a file with a new secret, mode 600, on the disk for good on return.

    Raises ConfigError when the file is there already, or its folder is not.
    """
    try:
        with _folder_of(path) as folder:
            _write_new(path, new_secret().encode() + b"\n")
            os.fsync(folder)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} is there already; to replace a secret use: butterfly-admin secret rotate"
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot make {path}: {error.strerror}") from error


def rotate_secret_file(path: Path, stage: Stage) -> None:
    """Take one step of a change of the secret; the file is replaced whole or not at all.

    Raises ConfigError when the file is not at the step before, cannot be read or replaced.
    """
    real = path.resolve()  # a symbolic link stays one
    try:
        with _folder_of(real) as folder:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            secret = load_secret(real)
            comments, _ = lines_of(read_secret_file(real))
            _replace(real, _STEPS[stage](path, secret, comments))
            os.fsync(folder)
    except BlockingIOError as error:
        raise ConfigError(f"{path}: another process is changing it now") from error
    except OSError as error:
        raise ConfigError(f"cannot change {path}: {error.strerror}") from error


def _add(path: Path, secret: ClusterSecret, comments: list[bytes]) -> bytes:
    if secret.previous is not None:
        following = "finish" if _SWITCHED in comments else "switch"
        raise ConfigError(
            f"{path} holds two secrets already: a change is under way; its next step is {following}"
        )
    return _lines(_ADDED, secret.current, new_secret().encode())


def _switch(path: Path, secret: ClusterSecret, comments: list[bytes]) -> bytes:
    old, new = secret.current, _second(path, secret, comments, _ADDED)
    return _lines(_SWITCHED, new, old)


def _finish(path: Path, secret: ClusterSecret, comments: list[bytes]) -> bytes:
    _second(path, secret, comments, _SWITCHED)
    return _lines(secret.current)


_Step = Callable[[Path, ClusterSecret, list[bytes]], bytes]
_STEPS: Final[Mapping[Stage, _Step]] = MappingProxyType(
    {"add": _add, "switch": _switch, "finish": _finish}
)


def _second(path: Path, secret: ClusterSecret, comments: list[bytes], wanted: bytes) -> bytes:
    """The second secret of a file at the step that this comment marks."""
    if secret.previous is None:
        raise ConfigError(f"{path} holds one secret: no change is under way; begin with: add")
    if wanted not in comments:
        known = {_ADDED: "switch", _SWITCHED: "finish"}
        following = next((step for mark, step in known.items() if mark in comments), None)
        advice = (
            f"its next step is {following}"
            if following
            else "it does not say which is the new one; leave the line of the new one alone in it "
            "once every node accepts both"
        )
        raise ConfigError(f"{path} is at another step of the change; {advice}")
    return secret.previous


def _lines(*lines: bytes) -> bytes:
    return b"".join(line + b"\n" for line in lines)


@contextmanager
def _folder_of(path: Path) -> Iterator[int]:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield folder
    finally:
        os.close(folder)


def _write_new(path: Path, content: bytes, owner: os.stat_result | None = None) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # whatever the umask took away
            if owner is not None and (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)  # root edits a node's file
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    _write_new(part, content, path.stat())
    try:
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
