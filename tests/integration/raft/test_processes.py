"""Real processes, real sockets, real disks, and ``kill -9``."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from butterfly_core.ids import NodeId
from tests.integration.raft.fleet import Fleet

LEARNER = NodeId(f"{9:032x}")


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path, founders=3)
    yield made
    await made.kill(*made.members)


async def test_the_cluster_goes_on_after_its_leader_was_killed(fleet: Fleet) -> None:
    await fleet.start(*fleet.founders)
    leader = await fleet.leader()
    await fleet.write(leader, "before")
    await fleet.kill(leader)
    survivor = next(iter(fleet.members))
    await fleet.write(survivor, "after")
    await fleet.start(leader)

    await fleet.until_all_have({"before", "after"})


async def test_acknowledged_writes_survive_the_kill_of_all(fleet: Fleet) -> None:
    await fleet.start(*fleet.founders)
    acknowledged: set[str] = set()
    for round_number in range(3):
        leader = await fleet.leader()
        await fleet.write(leader, f"first of round {round_number}")

        async def load(me: NodeId, number: int, round_number: int = round_number) -> None:
            count = 0
            while me in fleet.members:
                text = f"{round_number} {number} {count}"
                answer = await fleet.members[me].ask("write", text=text, seconds=5)
                if "index" in answer:
                    acknowledged.add(text)
                count += 1

        writers = [
            asyncio.ensure_future(load(me, number))
            for number, me in enumerate([*fleet.members, *fleet.members])
        ]
        await asyncio.sleep(0.3)
        for process in fleet.members.values():
            await process.ask("compact")
        await asyncio.sleep(0.1)
        await fleet.kill(*fleet.founders)
        await asyncio.gather(*writers)
        await fleet.start(*fleet.founders)

    assert acknowledged
    await fleet.until_all_have(acknowledged)


async def test_a_learner_joins_is_promoted_and_keeps_its_vote_after_a_restart(
    fleet: Fleet,
) -> None:
    await fleet.start(*fleet.founders)
    leader = await fleet.leader()
    for number in range(30):
        await fleet.write(leader, f"early {number}")
    await fleet.members[leader].ask("compact")
    await fleet.start(LEARNER)
    await fleet.until_all_have({"early 29"})
    assert not (await fleet.members[LEARNER].ask("status"))["is_voter"]

    leader = await fleet.leader()
    added = await fleet.members[leader].ask("add", node=LEARNER, seconds=20)
    assert LEARNER in added["voters"]
    await fleet.write(LEARNER, "as a voter")
    await fleet.kill(*fleet.members)
    await fleet.start(*fleet.founders, LEARNER)
    await fleet.write(LEARNER, "after the restart")
    status = await fleet.members[LEARNER].ask("status")

    assert status["is_voter"]
    assert status["voters"] == sorted([*fleet.founders, LEARNER])
    await fleet.until_all_have({"early 0", "as a voter", "after the restart"})
