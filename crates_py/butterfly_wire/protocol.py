"""What nodes say to each other, as values: the hello, and errors that keep their class.

Pure: maps go in and come out. What a connection does with them is in ``connection.py``,
``session.py`` and ``calls.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from butterfly_core import errors
from butterfly_core.errors import (
    ButterflyError,
    InvalidValue,
    NotAuthenticated,
    NotServing,
    ProtocolViolation,
    Refused,
)
from butterfly_core.ids import NodeId, parse_node_id, short

PROTOCOL_VERSION = 1
"""The newest version of the wire that this release speaks."""
_VERSION_MAX = 1 << 16
CONTROL = "control"
"""The purpose of a connection that carries calls and streams; any other is a channel."""
NAME_CHARS_MAX = 200
ITEM_COST_BYTES = 256
"""What an item of a stream costs of its window beside its bytes: handling it takes time too."""
_MESSAGE_CHARS_MAX = 4000
_CLASSES_MAX = 16

_ERROR_CLASSES: dict[str, type[ButterflyError]] = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, ButterflyError)
}


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions of the wire that a node speaks, both ends included."""

    oldest: int
    newest: int

    def __str__(self) -> str:
        return f"{self.oldest}" if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


SPOKEN = Versions(1, PROTOCOL_VERSION)


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of each side."""

    versions: Versions
    cluster_name: str
    node_id: NodeId
    purpose: str

    def to_map(self) -> dict[str, Any]:
        return {
            # Nodes of the first release read this one alone.
            "version": self.versions.oldest,
            "versions": [self.versions.oldest, self.versions.newest],
            "cluster_name": self.cluster_name,
            "node_id": self.node_id,
            "purpose": self.purpose,
        }


def parse_hello(meta: Mapping[str, Any]) -> Hello:
    """Read a hello. Raises ProtocolViolation."""
    version = meta.get("version")
    oldest, newest = _pair(meta.get("versions", [version, version]))
    try:
        node_id = parse_node_id(text_of(meta, "node_id"))
    except InvalidValue as error:
        raise ProtocolViolation(f"a hello with a bad node id: {error}") from error
    versions = Versions(oldest, newest)
    return Hello(versions, text_of(meta, "cluster_name"), node_id, text_of(meta, "purpose"))


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2:
        oldest, newest = value
        if type(oldest) is int and type(newest) is int and 0 < oldest <= newest < _VERSION_MAX:
            return oldest, newest
    raise ProtocolViolation("a hello without a range of versions")


def agreed_version(mine: Hello, theirs: Hello) -> int:
    """The newest version that both speak. Raises Refused when there is none."""
    newest = min(mine.versions.newest, theirs.versions.newest)
    if newest >= max(mine.versions.oldest, theirs.versions.oldest):
        return newest
    older = theirs if theirs.versions.newest < mine.versions.newest else mine
    raise Refused(
        f"node {short(theirs.node_id)} speaks wire versions {theirs.versions}, node "
        f"{short(mine.node_id)} speaks {mine.versions}: none in common; upgrade node "
        f"{short(older.node_id)}, in steps of one release when the whole cluster must go on"
    )


def check_hello(mine: Hello, theirs: Hello, proved: NodeId | None) -> int:
    """Refuse a peer that is not who it says, or does not belong here; else the common version.

    ``proved`` is the id in its certificate, None where certificates name nobody. Raises
    NotAuthenticated or Refused; the message is written for the peer's operator too.
    """
    version = agreed_version(mine, theirs)
    if proved not in (None, theirs.node_id):
        raise NotAuthenticated(
            f"a peer says it is node {theirs.node_id}, its certificate says {proved}"
        )
    if theirs.cluster_name != mine.cluster_name:
        raise Refused(
            f"node {short(theirs.node_id)} is of cluster name {theirs.cluster_name!r}, this node "
            f"belongs to {mine.cluster_name!r}; set the same [cluster] cluster_name on both"
        )
    return version


def check_expected(expect: NodeId | None, proved: NodeId, where: str) -> None:
    """Raises NotAuthenticated when another node answers than the one that was meant."""
    if expect is not None and proved != expect:
        raise NotAuthenticated(
            f"{where} is node {proved}, expected {expect}; the address now belongs to another "
            "node, or its data directory was replaced"
        )


def error_to_map(error: ButterflyError) -> dict[str, Any]:
    """An error as a map: the names of its classes, nearest first, and its message."""
    classes = [c.__name__ for c in type(error).__mro__ if issubclass(c, ButterflyError)]
    known: dict[str, Any] = {
        "classes": classes[:_CLASSES_MAX],
        "message": _sendable(str(error)[:_MESSAGE_CHARS_MAX]),
    }
    if isinstance(error, NotServing):
        known["phase"] = _sendable(error.phase)
        known["retry_after_seconds"] = error.retry_after_seconds
    return known


def _sendable(text: str) -> str:
    """Without lone surrogates, as names of files may bring them: UTF-8 has none."""
    return text.encode(errors="replace").decode()


def error_from_map(meta: Mapping[str, Any]) -> ButterflyError:
    """The error a peer raised: the nearest class that the core knows, else Refused."""
    classes, message = meta.get("classes"), text_of(meta, "message", _MESSAGE_CHARS_MAX)
    if not isinstance(classes, list) or len(classes) > _CLASSES_MAX:
        raise ProtocolViolation("an error without its classes")
    names = (name for name in classes if isinstance(name, str))
    found = next((_ERROR_CLASSES[name] for name in names if name in _ERROR_CLASSES), Refused)
    if issubclass(found, NotServing):
        seconds = meta.get("retry_after_seconds")
        if type(seconds) is not int or not 0 <= seconds <= 86400:
            raise ProtocolViolation(f"retry_after_seconds is {seconds!r}")
        return NotServing(message, phase=text_of(meta, "phase"), retry_after_seconds=seconds)
    return found(message)


def text_of(meta: Mapping[str, Any], key: str, chars_max: int = NAME_CHARS_MAX) -> str:
    """A text of bounded length. Raises ProtocolViolation."""
    value = meta.get(key)
    if not isinstance(value, str) or len(value) > chars_max:
        raise ProtocolViolation(f"{key} must be a text of at most {chars_max} characters")
    return value


def body_of(meta: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a call, reply or item. Raises ProtocolViolation."""
    body = meta.get("body")
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise ProtocolViolation("a message without a body that is a map with text keys")
    return body


def count_of(meta: Mapping[str, Any], key: str, count_max: int) -> int:
    """An integer from 1 to the limit. Raises ProtocolViolation."""
    value = meta.get(key)
    if type(value) is not int or not 1 <= value <= count_max:
        raise ProtocolViolation(f"{key} is {value!r}; it must be from 1 to {count_max}")
    return value
