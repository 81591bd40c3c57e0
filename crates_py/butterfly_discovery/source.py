"""Where candidates come from. A source only names addresses; who answers there is proved later."""

import asyncio
from collections.abc import Iterable
from typing import Protocol

from butterfly_core.address import Address
from butterfly_core.errors import InvalidValue


class Source(Protocol):
    """One way to learn of nodes: a list, DNS, multicast, a registry.

    A source that cannot answer now raises WorldError or OSError: that is no news, and what it
    said before still stands. An empty set is an answer: nobody is there.
    """

    @property
    def name(self) -> str:
        """Tells this source from the others of a node, as ``static``; for messages, too."""
        ...

    async def next(self) -> frozenset[Address]:
        """All addresses that it knows, the asking node's own among them.

        The first call answers as soon as it can; later calls return when there may be news,
        which may take minutes. A cancelled call loses nothing.
        """
        ...

    async def run(self) -> None:
        """What it does beside answering (register, send, receive), until cancelled.

        Never raises because its world is down. A source without such duties returns at once.
        """
        ...


class StaticSource:
    """The seed nodes that a person listed; they never change."""

    name = "static"

    def __init__(self, seeds: Iterable[Address]) -> None:
        """Raises InvalidValue for a seed that nobody could dial."""
        self._seeds = frozenset(seeds)
        self._told = False
        for seed in sorted(self._seeds):
            if seed.port == 0 or seed.is_wildcard:
                raise InvalidValue(f"seed node {seed} cannot be dialled; give a host and its port")

    async def next(self) -> frozenset[Address]:
        if self._told:
            await asyncio.Event().wait()
        self._told = True
        return self._seeds

    async def run(self) -> None:
        return
