"""The loop on virtual time: jumps, pauses, order."""

import asyncio

from tests.sim.virtual_loop import context_of, run_virtually, the_loop


def test_a_loop_where_everybody_waits_jumps() -> None:
    async def sleep_long() -> float:
        await asyncio.sleep(86_400)
        return the_loop().time()

    assert run_virtually(sleep_long()) == 86_400


def test_a_paused_process_does_nothing_and_then_everything_it_missed() -> None:
    ticks: list[float] = []

    async def tick() -> None:
        while len(ticks) < 8:
            ticks.append(round(the_loop().time(), 1))
            await asyncio.sleep(1.0)

    async def story() -> None:
        task = the_loop().create_task(tick(), context=context_of("a"))
        await asyncio.sleep(2.5)
        the_loop().pause("a")
        await asyncio.sleep(5.0)
        assert ticks == [0.0, 1.0, 2.0]
        the_loop().resume("a")
        await task

    run_virtually(story())
    assert ticks[3:] == [7.5, 8.5, 9.5, 10.5, 11.5]


def test_a_pause_stops_the_children_too_and_nobody_else() -> None:
    told: list[str] = []

    async def say(word: str) -> None:
        await asyncio.sleep(1.0)
        told.append(word)

    async def parent() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(say("child"))

    async def story() -> None:
        tasks = [
            the_loop().create_task(parent(), context=context_of("a")),
            the_loop().create_task(say("other"), context=context_of("b")),
        ]
        await asyncio.sleep(0.5)
        the_loop().pause("a")
        await asyncio.sleep(1.0)
        assert told == ["other"]
        the_loop().resume("a")
        await asyncio.gather(*tasks)

    run_virtually(story())
    assert told == ["other", "child"]


def test_timers_of_one_moment_fire_in_the_order_they_were_set() -> None:
    told: list[int] = []

    async def story() -> None:
        for number in range(5):
            the_loop().call_at(1.0, told.append, number)
        the_loop().call_at(1.0, told.append, 9).cancel()
        await asyncio.sleep(2.0)

    run_virtually(story())
    assert told == [0, 1, 2, 3, 4]
