"""Commands on their way into the log: wait for a leader, hand in, tell what came of it."""

import asyncio
from collections.abc import Callable

from butterfly_cluster.membership import MEMBERSHIP, NO_OP, REGULAR, VoterChange
from butterfly_cluster.raft_codec import COMMAND_BYTES_MAX, is_command
from butterfly_cluster.raft_core import Core
from butterfly_cluster.raft_doors import Answered
from butterfly_cluster.raft_insides import LEADER
from butterfly_cluster.raft_sync import FAILURES
from butterfly_cluster.raft_timing import TICK_SECONDS
from butterfly_core.errors import InvalidValue, NotServing, Refused, Unreachable
from butterfly_core.ids import short

_NOT_HANDED_IN = frozenset({FAILURES.MISSING_LEADER, FAILURES.NOT_LEADER})


class Proposals:
    """Proposes on behalf of one node. ``wake`` asks for a tick; ``check`` raises when it ended."""

    def __init__(self, core: Core, wake: Callable[[], None], check: Callable[[], None]) -> None:
        self._core, self._wake, self._check = core, wake, check
        self.waiting = 0

    async def propose(self, body: bytes, timeout_seconds: float) -> int:
        """Return the index at which the command was applied on this node.

        Raises InvalidValue (not JSON, too big), NotServing (not handed in: nothing happened)
        and Unreachable (handed in, outcome unknown: ask the state, or propose again).
        """
        if not is_command(bytes([REGULAR]) + body):
            raise InvalidValue(
                f"a command is JSON of at most {COMMAND_BYTES_MAX} bytes, not {body[:60]!r}"
            )
        return await self._in_time(
            timeout_seconds, lambda answered: self._core.propose(body, answered)
        )

    async def barrier(self, timeout_seconds: float) -> int:
        """Return the index of a fresh no-op once it is applied on this node.

        What was committed anywhere before the call is applied here then (Raft thesis 6.4). A
        no-op whose outcome is unknown is followed by another one. Raises NotServing,
        Unreachable.
        """
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                return await self._in_time(
                    left, lambda answered: self._core.propose(b"", answered, NO_OP)
                )
            except Unreachable:
                self._check()
                if asyncio.get_running_loop().time() >= deadline:
                    raise

    async def change_voters(self, change: VoterChange, timeout_seconds: float) -> None:
        """Return once the change is committed. Only on the leader, one at a time.

        Raises NotServing (not the leader, or another change is under way until the time is
        up), Refused (never possible) and Unreachable (outcome unknown).
        """
        if change.operation == "rem" and change.node_id == self._core.me:
            raise Refused("a leader does not remove itself; hand the leadership over first")
        if change.operation == "rem" and self._core.voters == {change.node_id}:
            raise Refused(f"{short(change.node_id)} is the last voter")
        adding = change.operation == "add"
        if adding == (change.node_id in self._core.voters) and self._core.role == LEADER:
            return
        await self._in_time(
            timeout_seconds,
            lambda answered: self._core.propose(change.encode(), answered, MEMBERSHIP),
            only_leader=True,
        )

    def must_be_granted(self, _: int | None, failure: int) -> None:
        """Turn a refused hand-over into Refused."""
        if failure != FAILURES.SUCCESS:
            raise Refused("only a leader with a caught-up voter hands the leadership over")

    async def _in_time(
        self,
        timeout_seconds: float,
        hand_in: Callable[[Answered], None],
        *,
        only_leader: bool = False,
    ) -> int:
        handed_in = False
        try:
            async with asyncio.timeout(timeout_seconds):
                while True:
                    await self._until_somebody_leads(only_leader)
                    handed_in = True
                    index, failure = await self._answer(hand_in)
                    if index is not None:
                        return index
                    handed_in = False
                    self._raise_unless_it_may_be_tried_again(failure)
                    await asyncio.sleep(TICK_SECONDS)
        except TimeoutError:
            leader = self._core.leader
            if handed_in:
                raise Unreachable(
                    f"no answer within {timeout_seconds} s from the leader "
                    f"{short(leader) if leader else '(none now)'}; the command may still be "
                    "committed, propose it again"
                ) from None
            raise NotServing(
                f"no leader took the command within {timeout_seconds} s; a majority of the "
                f"{len(self._core.voters)} voters must be up and reachable",
                phase="election",
            ) from None

    async def _until_somebody_leads(self, only_leader: bool) -> None:
        while True:
            self._check()
            if self._core.role == LEADER:
                return
            if only_leader and self._core.leader is not None:
                raise NotServing(
                    f"node {self._core.leader} leads, not this one; ask there", phase="election"
                )
            if self._core.leader is not None:
                return
            await asyncio.sleep(TICK_SECONDS)

    async def _answer(self, hand_in: Callable[[Answered], None]) -> tuple[int | None, int]:
        future: asyncio.Future[tuple[int | None, int]] = asyncio.get_running_loop().create_future()

        def answered(index: int | None, failure: int) -> None:
            if not future.done():
                future.set_result((index, failure))

        self.waiting += 1
        try:
            hand_in(answered)
            self._wake()
            return await future
        finally:
            self.waiting -= 1

    def _raise_unless_it_may_be_tried_again(self, failure: int) -> None:
        if failure in _NOT_HANDED_IN or failure == FAILURES.REQUEST_DENIED:
            return
        if failure == FAILURES.QUEUE_FULL:
            raise NotServing("too many commands wait for the leader", phase="election")
        raise Unreachable(
            "the leader changed while the command was on its way; it may be committed or not, "
            "propose it again"
        )
