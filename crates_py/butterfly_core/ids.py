"""Identifiers: what names a node, a cluster and an assignment."""

import re
from typing import NewType

from butterfly_core.errors import InvalidValue

NodeId = NewType("NodeId", str)
"""32 lower-case hexadecimal digits (128 random bits), fixed for the life of a data directory."""

ClusterId = NewType("ClusterId", str)
"""32 lower-case hexadecimal digits: a hash of the founding configuration."""

Epoch = NewType("Epoch", int)
"""Number of one assignment of all layers; 0 before the first one, then only rising."""

_HEX_128 = re.compile(r"[0-9a-f]{32}")


def node_id_from_bytes(random_bytes: bytes) -> NodeId:
    """Make an id of 16 random bytes. Raises InvalidValue for another length."""
    if len(random_bytes) != 16:
        raise InvalidValue(f"a node id is made of 16 bytes, not {len(random_bytes)}")
    return NodeId(random_bytes.hex())


def parse_node_id(text: str) -> NodeId:
    """Check that the text is a node id. Raises InvalidValue."""
    if not _HEX_128.fullmatch(text):
        raise InvalidValue(f"{text!r} is not a node id (32 hexadecimal digits)")
    return NodeId(text)


def short(identifier: str) -> str:
    """Eight digits of an id, for people."""
    return identifier[:8]
