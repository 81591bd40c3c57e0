"""From whom a leaf should come: the source, nodes that hold it, or the one node that is fetching
it for all. Pure.

Leaves are judged by *stretches* of their shard, so that who fetches one asks the source for whole
ranges. Nodes that see the same others agree on who fetches a stretch without a word: the highest
of a hash over stretch and name wins (rendezvous hashing). One waits only for a name whose hash is
higher than its own, so nobody waits in a circle, whatever each sees.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

from blake3 import blake3

STRETCH_BYTES: Final = 8 << 20
HOLDERS_ASKED: Final = 2
_CONTEXT: Final = "butterfly weights 2026 v1: who fetches a stretch"


class Holding(IntEnum):
    """What a node says of a tensor; the numbers go over the wire."""

    NO = 0
    LOADING = 1
    HELD = 2


@dataclass(frozen=True, slots=True)
class FromSource:
    """This node fetches it itself."""


@dataclass(frozen=True, slots=True)
class FromHolders:
    """Any of these has it; the first is to be asked first."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WaitFor:
    """That node fetches it from the source and gives it on."""

    name: str


Choice = FromSource | FromHolders | WaitFor


def stretch_of(shard: str, offset: int) -> str:
    """The stretch in which a leaf begins; the same on every node that reads the same files."""
    return f"{offset // STRETCH_BYTES}:{shard}"


def choose(me: str, stretch: str, views: Mapping[str, Holding]) -> Choice:
    """From whom a leaf of this stretch should come. ``views``: what the other nodes that may be
    asked say of its tensor; this node itself wants it and has it not."""
    holders = frozenset(name for name, view in views.items() if view is Holding.HELD)
    if holders:
        return FromHolders(_in_order(me, stretch, holders)[:HOLDERS_ASKED])
    loaders = frozenset(name for name, view in views.items() if view is Holding.LOADING)
    fetcher = fetcher_of(stretch, loaders | {me})
    return FromSource() if fetcher == me else WaitFor(fetcher)


@lru_cache(maxsize=1 << 16)
def fetcher_of(stretch: str, names: frozenset[str]) -> str:
    """Which of these nodes fetches the stretch from the source; ``names`` is not empty."""
    return max(names, key=lambda name: (_score(stretch, name), name))


@lru_cache(maxsize=1 << 16)
def _in_order(me: str, stretch: str, holders: frozenset[str]) -> tuple[str, ...]:
    """Each asker has an order of its own, or all would ask the same holder."""
    return tuple(sorted(holders, key=lambda name: (_score(stretch, f"{me}\0{name}"), name)))


def _score(stretch: str, name: str) -> bytes:
    return blake3(f"{name}\0{stretch}".encode(), derive_key_context=_CONTEXT).digest(length=8)


def source_should_help(
    idle_seconds: float,
    peer_bytes: int,
    source_bytes_per_second: float,
    *,
    patience_seconds: float,
) -> bool:
    """Whether to fetch from the source what peers were to give. Nothing else has been asked of
    the source for ``idle_seconds``, in which peers gave ``peer_bytes``; ``source_bytes_per_second``
    is what it gave while it was asked (0: it never was)."""
    if idle_seconds < patience_seconds:
        return False
    return not peer_bytes or peer_bytes / idle_seconds < source_bytes_per_second / 2
