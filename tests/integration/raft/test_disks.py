"""Real processes on a disk that is really full, and killed at random moments."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from butterfly_core.ids import NodeId
from tests.integration.raft.fleet import Fleet
from tests.support.small_disk import fill, free, small_disk

SMALL_DISK_BYTES = 1 << 20


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    made = Fleet(tmp_path, founders=3)
    yield made
    await made.kill(*made.members)


@pytest.fixture
def disk_of_the_second(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / f"{2:032x}", SMALL_DISK_BYTES) as place:
        yield place


async def until_mute(fleet: Fleet, me: NodeId, writer: NodeId) -> int:
    """Write until the member says that its disk failed; returns how many writes it took."""
    for number in range(200):
        await fleet.write(writer, f"filling {number}")
        if (await fleet.members[me].ask("status"))["is_mute"]:
            return number + 1
    raise AssertionError("the full disk was not noticed")


async def test_a_full_disk_makes_one_member_mute_until_space_is_free_and_it_restarts(
    disk_of_the_second: Path, fleet: Fleet
) -> None:
    await fleet.start(*fleet.founders)
    first, full, third = fleet.founders
    await fleet.write(first, "before")
    fill(disk_of_the_second)
    await until_mute(fleet, full, first)
    await fleet.write(third, "meanwhile")
    await fleet.write(full, "through the mute one")
    await fleet.until_all_have({"before", "meanwhile", "through the mute one"})
    assert not (await fleet.members[full].ask("status"))["is_leader"]

    free(disk_of_the_second)
    await fleet.kill(full)
    await fleet.start(full)
    await fleet.until_all_have({"before", "meanwhile", "through the mute one"})
    assert not (await fleet.members[full].ask("status"))["is_mute"]
    await fleet.kill(first)
    await fleet.write(full, "with its vote")  # two of three are a majority only if both vote
    await fleet.start(first)
    await fleet.until_all_have({"meanwhile", "with its vote"})


@pytest.mark.chaos
@pytest.mark.parametrize("kills", [15, pytest.param(500, marks=pytest.mark.slow)])
async def test_nothing_acknowledged_is_lost_by_kills_at_random_moments(
    kills: int, fleet: Fleet
) -> None:
    await fleet.start(*fleet.founders)
    dice, acknowledged, ended = random.Random(kills), set[str](), False

    async def load(number: int) -> None:
        count = 0
        while not ended:
            me = fleet.founders[(number + count) % 3]
            count += 1
            process = fleet.members.get(me)
            if process is None:
                await asyncio.sleep(0.01)
                continue
            text = f"{number} {count}"
            if "index" in await process.ask("write", text=text, seconds=2):
                acknowledged.add(text)

    writers = [asyncio.ensure_future(load(number)) for number in range(4)]
    done = 0
    while done < kills:
        victims = dice.sample(fleet.founders, dice.choice([1, 1, 1, 2, 3]))
        await asyncio.sleep(dice.random() * 0.4)
        if dice.random() < 0.3:
            await fleet.members[victims[0]].ask("compact")
        await fleet.kill(*victims)
        await fleet.start(*victims)
        done += len(victims)
    await fleet.write(fleet.founders[0], "the end")
    ended = True
    await asyncio.gather(*writers)

    assert acknowledged
    await fleet.until_all_have(acknowledged | {"the end"})
