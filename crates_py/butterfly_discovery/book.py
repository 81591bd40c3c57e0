"""What all sources said, put together, and whom to dial next. Pure: time comes in as ``now``."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from butterfly_core.address import Address

ADDRESSES_PER_SOURCE_MAX = 1024
"""A source that names more (a DNS zone gone wrong) is cut, the same way at every node."""

RETRY_SECONDS_MIN = 0.2
RETRY_SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Book:
    """The last answer of each source, by the source's name."""

    answers: Mapping[str, frozenset[Address]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def addresses(self) -> frozenset[Address]:
        """Everything that any source names."""
        return frozenset().union(*self.answers.values())


def merge(book: Book, source: str, answer: frozenset[Address]) -> Book:
    """The book after a source answered: its new answer replaces its last one, nobody else's."""
    kept = frozenset(sorted(answer)[:ADDRESSES_PER_SOURCE_MAX])
    return replace(book, answers=MappingProxyType({**book.answers, source: kept}))


@dataclass(frozen=True, slots=True)
class Attempts:
    """Dials of one address in a row that failed, and when the last one did."""

    failures: int
    last_seconds: float


def choose(
    addresses: Collection[Address],
    *,
    own: Collection[Address],
    attempts: Mapping[Address, Attempts],
    now: float,
    count_max: int,
) -> tuple[Address, ...]:
    """Whom to dial now: at most ``count_max`` others, least failed first.

    An address that failed rests for 0.2 s, doubled with each failure up to 5 s. Among equals
    each node has an order of its own, so that not all of them fall upon the same seed.
    """
    fresh = Attempts(0, float("-inf"))
    due = [
        address
        for address in addresses
        if address not in own and _rested(attempts.get(address, fresh), now)
    ]
    asking = ",".join(sorted(map(str, own)))
    due.sort(key=lambda a: (attempts.get(a, fresh).failures, _mixed(asking, a), a))
    return tuple(due[:count_max])


def failed(attempts: Mapping[Address, Attempts], address: Address, now: float) -> Attempts:
    """What to remember of an address after one more failed dial."""
    before = attempts.get(address)
    return Attempts(1 + (before.failures if before else 0), now)


def rest_seconds(failures: int) -> float:
    """How long an address rests after so many failures in a row."""
    if failures == 0:
        return 0.0
    return min(RETRY_SECONDS_MAX, RETRY_SECONDS_MIN * 2.0 ** min(failures - 1, 16))


def _rested(attempts: Attempts, now: float) -> bool:
    return now - attempts.last_seconds >= rest_seconds(attempts.failures)


def _mixed(asking: str, address: Address) -> bytes:
    return hashlib.blake2b(f"{asking} {address}".encode(), digest_size=8).digest()
