"""What each node is told about who else there is: fixed lists, and sources that lie by omission.

Every viewer of a dynamic source gets an answer of its own, which changes over time, fails, or is
empty, until ``Truth.is_plain``: then all are told of every machine, at its present address.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from butterfly_cluster.claims import Claim, Claims
from butterfly_cluster.registry import Directory
from butterfly_core.errors import Unreachable

EXPIRY_SECONDS = 3.0
"""So long a service is listed after its node's death."""


class Place(Protocol):
    """A machine, as far as a source knows of it."""

    @property
    def name(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def is_up(self) -> bool: ...


@dataclass
class Truth:
    """What is really so; one for all viewers."""

    places: Sequence[Place]
    now: Callable[[], float]
    is_heard: Callable[[str, str], bool]
    """Whether packets get from one machine to another."""
    dice: random.Random
    is_plain: bool = False
    outage_until: float = 0.0
    claim: Claim | None = None
    listed: dict[str, tuple[str, float]] | None = None
    """Services in the registry: where, and when they were seen alive last."""


class StaticList:
    """``seed_nodes``."""

    claims: Claims | None = None

    def __init__(self, seeds: Sequence[str]) -> None:
        self._seeds = tuple(sorted(seeds))

    async def seeds(self) -> tuple[str, ...]:
        return self._seeds


class _Dynamic:
    claims: Claims | None = None

    def __init__(self, truth: Truth, me: Place, dice: random.Random) -> None:
        self._truth, self._me, self._dice = truth, me, dice
        self._last: tuple[str, ...] | None = None
        self._ask_after = 0.0

    async def seeds(self) -> tuple[str, ...]:
        """As ``NodeDiscovery``: the last answer stands while the source does not answer."""
        await asyncio.sleep(self._dice.uniform(0.0, 0.05))
        if self._truth.is_plain or self._truth.now() >= self._ask_after:
            self._ask_after = self._truth.now() + self._dice.choice([0.3, 1.0, 4.0])
            try:
                self._last = tuple(sorted(self._ask()))
            except Unreachable:
                if self._last is None:
                    raise
        if self._last is None:
            raise Unreachable("no answer yet")
        return self._last

    def _ask(self) -> set[str]:
        raise NotImplementedError


class DnsView(_Dynamic):
    """Records that appear and vanish, differ by viewer, SERVFAIL, and empty answers."""

    def _ask(self) -> set[str]:
        records = {place.where for place in self._truth.places}
        if self._truth.is_plain:
            return records
        chance = self._dice.random()
        if chance < 0.15:
            raise Unreachable("SERVFAIL")
        if chance < 0.2:
            return set()
        if chance < 0.5:
            return {record for record in sorted(records) if self._dice.random() < 0.6}
        return records


class MulticastView(_Dynamic):
    """Who was heard so far; everybody always hears itself."""

    def __init__(self, truth: Truth, me: Place, dice: random.Random) -> None:
        super().__init__(truth, me, dice)
        self._heard: dict[str, str] = {}

    def _ask(self) -> set[str]:
        self._heard[self._me.name] = self._me.where
        for place in self._truth.places:
            audible = place.is_up and self._truth.is_heard(place.name, self._me.name)
            lucky = self._truth.is_plain or self._dice.random() < 0.5
            if audible and lucky:
                self._heard[place.name] = place.where
        return set(self._heard.values())


class ConsulView(_Dynamic):
    """The registry's list of services, and its claim; both fail during an outage."""

    def __init__(self, truth: Truth, me: Place, dice: random.Random) -> None:
        super().__init__(truth, me, dice)
        self.claims = ConsulClaim(truth, dice)

    def _ask(self) -> set[str]:
        truth = self._truth
        raise_in_outage(truth)
        if truth.listed is None:
            truth.listed = {}
        for place in truth.places:
            if place.is_up:
                truth.listed[place.name] = (place.where, truth.now())
        fresh = truth.now() - EXPIRY_SECONDS
        return {where for where, seen in truth.listed.values() if seen >= fresh}


class ConsulClaim:
    """One key with check-and-set. An answer may be lost after the write was done."""

    def __init__(self, truth: Truth, dice: random.Random) -> None:
        self._truth, self._dice = truth, dice

    async def read(self) -> Claim | None:
        await asyncio.sleep(self._dice.uniform(0.001, 0.02))
        raise_in_outage(self._truth)
        return self._truth.claim

    async def write(self, claim: Claim, /, *, replacing: Claim | None) -> bool:
        await asyncio.sleep(self._dice.uniform(0.001, 0.02))
        raise_in_outage(self._truth)
        known = self._truth.claim
        expected = 0 if replacing is None else replacing.version
        done = (known.version if known else 0) == expected
        if done:
            self._truth.claim = replace(claim, version=expected + 1)
        await asyncio.sleep(self._dice.uniform(0.001, 0.02))
        if not self._truth.is_plain and self._dice.random() < 0.1:
            raise Unreachable("the answer of the registry was lost")
        return done


def raise_in_outage(truth: Truth) -> None:
    if not truth.is_plain and truth.now() < truth.outage_until:
        raise Unreachable("the registry does not answer")


def directory_of(source: str, truth: Truth, me: Place, dice: random.Random) -> Directory:
    """The dynamic source of this name, as one node sees it."""
    views: dict[str, type[_Dynamic]] = {
        "dns": DnsView,
        "multicast": MulticastView,
        "consul": ConsulView,
    }
    return views[source](truth, me, dice)
