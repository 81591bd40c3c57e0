"""The two questions of founding, asked of many addresses side by side, each within a limit."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from butterfly_cluster.founding_messages import Proposal, Verdict, WhoAmI
from butterfly_cluster.founding_sight import Answers
from butterfly_core.errors import ButterflyError
from butterfly_core.ids import NodeId

ASK_SECONDS = 2.0
_ASKED_AT_ONCE_MAX = 32


class AskPeers(Protocol):
    """How the application asks another node; raises ButterflyError or OSError.

    ``expect`` is who must answer, by certificate.
    """

    async def whoami(self, address: str, /) -> WhoAmI: ...
    async def promise(self, address: str, proposal: Proposal, /, *, expect: NodeId) -> Verdict: ...


async def ask_all(ask: AskPeers, addresses: Iterable[str]) -> Answers:
    """Who is at each address, or why it does not answer; some at a time."""

    turn = asyncio.Semaphore(_ASKED_AT_ONCE_MAX)

    async def one(address: str) -> WhoAmI | str:
        try:
            async with turn, asyncio.timeout(ASK_SECONDS):
                return replace(await ask.whoami(address), address=address)
        except (ButterflyError, OSError) as error:
            return told(error)

    async with asyncio.TaskGroup() as tasks:
        asked = {address: tasks.create_task(one(address)) for address in sorted(addresses)}
    return {address: task.result() for address, task in asked.items()}


async def ask_promise(ask: AskPeers, address: str, proposal: Proposal, expect: NodeId) -> Verdict:
    """A node that does not answer has not promised, as far as this node knows.

    ``expect`` was heard at the address. Behind a name, another node may answer next; what it
    says is no promise of the expected one.
    """
    try:
        async with asyncio.timeout(ASK_SECONDS):
            return await ask.promise(address, proposal, expect=expect)
    except (ButterflyError, OSError) as error:
        return Verdict(False, told(error))


def told(error: BaseException) -> str:
    """An error in words; its name when it has none."""
    return str(error) or type(error).__name__
