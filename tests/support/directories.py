"""Founding's view of a source, by hand: a list that a test may change, and a registry."""

from dataclasses import replace

from butterfly_cluster.claims import Claim


class Registry:
    """A claim with versions, as Consul keeps it; ``down`` makes every question fail."""

    def __init__(self) -> None:
        self.claim: Claim | None = None
        self.down = False
        self._version = 0

    async def read(self) -> Claim | None:
        if self.down:
            raise OSError("the registry is down")
        return self.claim

    async def write(self, claim: Claim, /, *, replacing: Claim | None) -> bool:
        if self.down:
            raise OSError("the registry is down")
        if self.claim != replacing:
            return False
        self._version += 1
        self.claim = replace(claim, version=self._version)
        return True


class Listed:
    """Names what it is told to; ``problem`` makes it fail."""

    def __init__(self, *seeds: str, claims: Registry | None = None) -> None:
        self.now = seeds
        self.claims = claims
        self.problem: OSError | None = None

    async def seeds(self) -> tuple[str, ...]:
        if self.problem is not None:
            raise self.problem
        return tuple(sorted(self.now))
