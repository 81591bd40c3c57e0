"""Real processes on hosts of their own, while the network between them is really cut.

Clients write and read registers at every member all the time. Afterwards each register's history
must be linearizable, and what was acknowledged must be in every member's log, in one order.
"""

import asyncio
import math
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from butterfly_core.ids import NodeId
from tests.integration.raft.fleet import Fleet
from tests.sim.wgl import Operation, Verdict, check
from tests.support.namespaces import Switch, switched

pytestmark = pytest.mark.chaos

KEYS = ("a", "b", "c")
MEMBERS = 5
OPERATION_SECONDS = 1.5
PAUSE_SECONDS = 0.03
CUT_SECONDS = 1.5
"""Longer than two elections: the cut-off leader has a successor that commits."""
BRINGS_NOTHING = {"NotServing", "Refused"}
"""Errors that say that a write was not handed in."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[Fleet, Switch]]:
    with switched(MEMBERS) as switch:
        fleet = Fleet(tmp_path, founders=MEMBERS, hosts=switch.hosts)
        await fleet.start(*fleet.founders)
        yield fleet, switch
        await fleet.kill(*fleet.members)


class Registers:
    """One client for each member; they keep a history of each register."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._written = 0
        self._ended = False
        self.histories: dict[str, list[Operation]] = defaultdict(list)
        self.acknowledged: set[str] = set()

    async def work(self, me: NodeId) -> None:
        dice = random.Random(me)
        while not self._ended:
            process = self._fleet.members.get(me)
            if process is not None:
                operate = self._write if dice.random() < 0.5 else self._read
                await operate(me, dice.choice(KEYS))
            await asyncio.sleep(PAUSE_SECONDS)

    def end(self) -> None:
        self._ended = True

    async def _write(self, me: NodeId, key: str) -> None:
        self._written += 1
        number, called = self._written, time.monotonic()
        text = f"{key} {number}"
        answer = await self._fleet.members[me].ask("write", text=text, seconds=OPERATION_SECONDS)
        if answer.get("error") in BRINGS_NOTHING:
            return
        done = "index" in answer
        if done:
            self.acknowledged.add(text)
        returned = time.monotonic() if done else math.inf
        self.histories[key].append(Operation(called, returned, "write", number))

    async def _read(self, me: NodeId, key: str) -> None:
        called = time.monotonic()
        answer = await self._fleet.members[me].ask("read", key=key, seconds=OPERATION_SECONDS)
        if "last" in answer:
            value = int(answer["last"].split()[1]) if answer["last"] else None
            self.histories[key].append(Operation(called, time.monotonic(), "read", value))


class Trouble:
    """What happens to the fleet; after each of them the network is whole and everybody runs."""

    def __init__(self, fleet: Fleet, switch: Switch) -> None:
        self._fleet, self._switch = fleet, switch

    async def isolate_the_leader(self) -> None:
        self._switch.isolate(self._fleet.hosts[await self._fleet.leader()])
        await asyncio.sleep(CUT_SECONDS)

    async def deafen_the_leader(self) -> None:
        self._switch.deafen(self._fleet.hosts[await self._fleet.leader()])
        await asyncio.sleep(CUT_SECONDS)

    async def silence_the_leader(self) -> None:
        self._switch.silence(self._fleet.hosts[await self._fleet.leader()])
        await asyncio.sleep(CUT_SECONDS)

    async def flap_the_leader(self) -> None:
        host = self._fleet.hosts[await self._fleet.leader()]
        for seconds in (0.2, 0.7, 0.3, 0.9):  # shorter and longer than an election, in turn
            self._switch.isolate(host)
            await asyncio.sleep(seconds)
            self._switch.heal()
            await asyncio.sleep(0.3)

    async def kill_all(self) -> None:
        for process in self._fleet.members.values():
            await process.ask("compact")
        await self._fleet.kill(*self._fleet.founders)
        await self._fleet.start(*self._fleet.founders)

    async def end(self) -> None:
        """Mend everything; then every member must be able to write."""
        self._switch.heal()
        for me in self._fleet.founders:
            await self._fleet.write(me, f"mended {time.monotonic()}")


@pytest.mark.parametrize("rounds", [1, pytest.param(12, marks=pytest.mark.slow)])
async def test_registers_are_linearizable_and_lose_nothing_whatever_is_cut_or_killed(
    rounds: int, world: tuple[Fleet, Switch]
) -> None:
    fleet, switch = world
    trouble, registers = Trouble(fleet, switch), Registers(fleet)
    await trouble.end()
    clients = [asyncio.ensure_future(registers.work(me)) for me in fleet.founders]
    for _ in range(rounds):
        for happen in (
            trouble.isolate_the_leader,
            trouble.deafen_the_leader,
            trouble.kill_all,
            trouble.silence_the_leader,
            trouble.flap_the_leader,
        ):
            before = len(registers.acknowledged)
            await happen()
            await trouble.end()
            assert len(registers.acknowledged) > before, f"{happen.__name__}: nobody could write"
    registers.end()
    await asyncio.gather(*clients)

    await fleet.until_all_have(registers.acknowledged)
    logs = [(await process.ask("status"))["items"] for process in fleet.members.values()]
    shortest = min(map(len, logs))
    assert len({tuple(log[:shortest]) for log in logs}) == 1, "two members differ"
    for key in KEYS:
        history = registers.histories[key]
        assert {operation.kind for operation in history} == {"read", "write"}
        assert check(history) is Verdict.LINEARIZABLE, f"register {key}"
