"""Where candidates come from. A source only names addresses; who answers there is proved later."""

from collections.abc import Iterable
from typing import Protocol

from butterfly_core.address import Address
from butterfly_core.errors import InvalidValue


class Source(Protocol):
    """One way to learn of nodes: a list, DNS, a registry.

    A source that cannot answer now raises WorldError or OSError: that is no news, and what it
    said before still stands. An empty set is an answer: nobody is there.
    """

    @property
    def name(self) -> str:
        """Tells this source from the others of a node, as ``static``; for messages, too."""
        ...

    async def candidates(self) -> frozenset[Address]:
        """All addresses that it knows now, the asking node's own among them."""
        ...


class StaticSource:
    """The seed nodes that a person listed; they never change."""

    name = "static"

    def __init__(self, seeds: Iterable[Address]) -> None:
        self._seeds = candidates(seeds)

    async def candidates(self) -> frozenset[Address]:
        return self._seeds


def candidates(seeds: Iterable[Address]) -> frozenset[Address]:
    """The listed seeds, each once. Raises InvalidValue for one that nobody could dial."""
    found = frozenset(seeds)
    for seed in sorted(found):
        if seed.port == 0 or seed.is_wildcard:
            raise InvalidValue(f"seed node {seed} cannot be dialled; give a host and its port")
    return found
