"""What the application's ``Directory`` says: who is expected to found, and the claim."""

import asyncio
from typing import Protocol

from butterfly_cluster.claims import Claim, Claims
from butterfly_cluster.founding_messages import WhoAmI
from butterfly_cluster.founding_questions import ASK_SECONDS
from butterfly_cluster.founding_sight import Answers
from butterfly_core.ids import ClusterId, NodeId


class Directory(Protocol):
    """Where the application looks up who is expected to found."""

    async def seeds(self) -> tuple[str, ...]:
        """The addresses that the node's source names now, as ``host:port``, sorted.

        Raises ButterflyError or OSError while the source has never answered.
        """
        ...

    @property
    def claims(self) -> Claims | None:
        """The registry of the claim, for a source that has one."""
        ...


class Registry:
    """The claim, each question within a limit of time; None and False without a registry."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._holder_heard: tuple[NodeId, float] | None = None

    async def read(self) -> Claim | None:
        """Raises WorldError, OSError."""
        if self._directory.claims is None:
            return None
        async with asyncio.timeout(ASK_SECONDS):
            return await self._directory.claims.read()

    async def write(self, claim: Claim, *, replacing: Claim | None) -> bool:
        """Compare and set. Raises WorldError, OSError."""
        if self._directory.claims is None:
            return False
        async with asyncio.timeout(ASK_SECONDS):
            return await self._directory.claims.write(claim, replacing=replacing)

    async def keep(self, me: NodeId, mine: ClusterId) -> ClusterId | None:
        """See to it that the claim names this cluster; the other one, if it names another."""
        claim = await self.read()
        if claim is not None and claim.cluster_id == mine:
            return None
        if claim is not None and claim.cluster_id is not None:
            return claim.cluster_id
        await self.write(Claim(me, mine), replacing=claim)
        return None

    def silent_seconds(self, claim: Claim | None, answers: Answers) -> float:
        """Since the claim's node was heard, or since this node first saw that it holds it."""
        if claim is None:
            self._holder_heard = None
            return 0.0
        now = asyncio.get_running_loop().time()
        answered = any(
            isinstance(answer, WhoAmI) and answer.node_id == claim.candidate
            for answer in answers.values()
        )
        if self._holder_heard is None or self._holder_heard[0] != claim.candidate or answered:
            self._holder_heard = claim.candidate, now
        return now - self._holder_heard[1]
