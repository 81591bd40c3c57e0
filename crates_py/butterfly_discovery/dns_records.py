"""What the records of a DNS answer mean: addresses to dial, and how long they hold. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from butterfly_core.address import Address
from butterfly_discovery.book import ADDRESSES_PER_SOURCE_MAX
from butterfly_discovery.dialable import dialable

SECONDS_WHEN_ZERO = 30.0
"""TTL 0 forbids caching; it is no invitation to ask without pause."""

SECONDS_MIN = 5.0
"""A caching server counts down, so that a record shows any small TTL just before it is renewed.
One question in 5 s is nothing to a server, and soon enough to see a change."""

SECONDS_MAX = 3600.0
"""A change is seen within the hour, whatever the zone says."""

NOBODY_SECONDS_MAX = 30.0
"""Of negative answers: founders that wait for their records should see them come."""


@dataclass(frozen=True, slots=True)
class Found:
    """An answer: addresses, for how long not to ask again, and records that nobody can dial."""

    addresses: frozenset[Address]
    hold_seconds: float
    skipped: tuple[str, ...] = ()


def found(targets: Iterable[tuple[str, int]], *, ttl_seconds: float) -> Found:
    """Read targets and ports as addresses. Those that cannot be dialled are skipped, and told.

    At most 1024 are kept, the same ones at every node.
    """
    addresses, skipped = set(), set()
    for target, port in targets:
        if address := dialable(target, port):
            addresses.add(address)
        elif target != ".":  # RFC 2782: the service is not there
            skipped.add(f"{target}:{port}")
    kept = sorted(addresses)[:ADDRESSES_PER_SOURCE_MAX]
    hold = hold_seconds(ttl_seconds, anybody=bool(kept))
    return Found(frozenset(kept), hold, tuple(sorted(skipped)[:ADDRESSES_PER_SOURCE_MAX]))


def hold_seconds(ttl_seconds: float, *, anybody: bool) -> float:
    """How long an answer holds: its TTL (RFC 2308 for a negative one) within our bounds."""
    if anybody and ttl_seconds <= 0:
        return SECONDS_WHEN_ZERO
    return max(SECONDS_MIN, min(ttl_seconds, SECONDS_MAX if anybody else NOBODY_SECONDS_MAX))
