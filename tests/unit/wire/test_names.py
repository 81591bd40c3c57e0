"""Names are looked up apart from everything else that blocks, and once at a time."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from butterfly_wire.names import THREADS_MAX, Found, Names

ADDRESS: list[Found] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]
NEWER: list[Found] = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.2", 0))]


class Resolver:
    """Answers, fails, or hangs until it is released."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()
        self.error: OSError | None = None
        self.found = ADDRESS

    def __call__(self, host: str) -> list[Found]:
        self.asked.append(host)
        self.answers.wait()
        if self.error is not None:
            raise self.error
        return self.found


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    made = Resolver()
    yield made
    made.answers.set()


async def hosts(names: Names, name: str = "node.example") -> list[object]:
    return [where for *_, where in await names.look_up(name, 7000)]


async def test_many_who_ask_for_one_name_share_one_answer(resolver: Resolver) -> None:
    names = Names(resolver)
    async with asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(hosts(names)) for _ in range(20)]
        await asyncio.sleep(0)
        asking[0].cancel()  # the others still get theirs
        resolver.answers.set()

    assert [task.result() for task in asking[1:]] == [[("10.0.0.1", 7000)]] * 19
    assert resolver.asked == ["node.example"]


async def test_a_resolver_that_hangs_takes_no_thread_of_others(resolver: Resolver) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    names = Names(resolver)
    asking = [asyncio.ensure_future(hosts(names, f"node-{n}.example")) for n in range(20)]

    assert await asyncio.to_thread(lambda: "done") == "done"
    assert len(resolver.asked) <= THREADS_MAX

    resolver.answers.set()
    assert await asyncio.gather(*asking) == [[("10.0.0.1", 7000)]] * 20


async def test_a_known_name_is_dialled_where_it_was_while_its_resolver_hangs(
    resolver: Resolver,
) -> None:
    names = Names(resolver, patience_seconds=0.01)
    resolver.answers.set()
    await hosts(names)
    resolver.answers.clear()

    assert await hosts(names) == [("10.0.0.1", 7000)]

    resolver.found = NEWER
    resolver.answers.set()
    while await hosts(names) != [("10.0.0.2", 7000)]:
        pass
    assert await hosts(names) == [("10.0.0.2", 7000)]


async def test_a_known_name_is_forgotten_by_an_answer_and_not_by_a_failure(
    resolver: Resolver,
) -> None:
    names = Names(resolver)
    resolver.answers.set()
    await hosts(names)

    resolver.error = socket.gaierror(socket.EAI_AGAIN, "no server answers")
    assert await hosts(names) == [("10.0.0.1", 7000)]

    resolver.error = socket.gaierror(socket.EAI_NONAME, "no such name")
    with pytest.raises(socket.gaierror, match="no such name"):
        await hosts(names)


@pytest.mark.parametrize(
    ("host", "where"), [("10.0.0.9", ("10.0.0.9", 7000)), ("fd00::9", ("fd00::9", 7000, 0, 0))]
)
async def test_an_ip_address_is_taken_as_it_is(
    resolver: Resolver, host: str, where: object
) -> None:
    assert await hosts(Names(resolver), host) == [where]
    assert resolver.asked == []
