"""Asks a real dnsmasq: records come, go and differ, and a server in trouble changes nothing."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly_core.address import Address, parse_address
from butterfly_core.errors import Unreachable
from butterfly_discovery.dns import DnsSource, Lookup, look_up, servers_asked
from butterfly_discovery.dns_records import SECONDS_MAX, SECONDS_MIN, SECONDS_WHEN_ZERO
from tests.support.dns_script import answered, dns_script
from tests.support.dns_server import DnsServer, cname, dns_server, forward, host, srv
from tests.support.needs import need

NAME = "_butterfly._tcp.example.com"


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="module")
def running() -> Iterator[DnsServer]:
    with dns_server() as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ask(server: DnsServer, clock: Clock, name: str = NAME, timeout: float = 5.0) -> DnsSource:
    return DnsSource(
        name,
        default_port=7000,
        servers=(server.address,),
        timeout_seconds=timeout,
        clock=clock,
        sleep=clock.sleep,
    )


def addresses(*texts: str) -> set[Address]:
    return set(map(parse_address, texts))


async def test_all_srv_targets_are_candidates_whatever_their_priority(
    running: DnsServer, clock: Clock
) -> None:
    running.serve(srv(NAME, "A.Example.com", 7001, 10, 5), srv(NAME, "127.0.0.1", 7002))

    assert await ask(running, clock).next() == addresses("a.example.com:7001", "127.0.0.1:7002")


async def test_records_that_come_go_and_change_port_are_seen(
    running: DnsServer, clock: Clock
) -> None:
    source = ask(running, clock)
    seen = []
    for lines in (
        [srv(NAME, "a.test", 1)],
        [srv(NAME, "a.test", 1), srv(NAME, "b.test", 1)],
        [srv(NAME, "a.test", 2), srv(NAME, "b.test", 1)],
        [],
        [srv(NAME, "b.test", 1)],
    ):
        running.serve(*lines)
        seen.append(await source.next())

    assert seen == [
        addresses("a.test:1"),
        addresses("a.test:1", "b.test:1"),
        addresses("a.test:2", "b.test:1"),
        set(),
        addresses("b.test:1"),
    ]


@pytest.mark.parametrize(
    ("ttl_seconds", "held_seconds"),
    [(0, SECONDS_WHEN_ZERO), (1, SECONDS_MIN), (90, 90.0), (86400, SECONDS_MAX)],
)
async def test_the_next_answer_waits_for_the_ttl(
    running: DnsServer, clock: Clock, ttl_seconds: int, held_seconds: float
) -> None:
    running.serve(srv(NAME, "a.test", 1), ttl_seconds=ttl_seconds)
    source = ask(running, clock)

    await source.next()
    assert clock.now == 0
    await source.next()
    assert clock.now == held_seconds


async def test_a_name_without_srv_records_gives_its_addresses_and_the_default_port(
    running: DnsServer, clock: Clock
) -> None:
    running.serve(
        host("node.example.com", "10.0.0.1", "fd00::1"), host("node.example.com", "10.0.0.2")
    )

    assert await ask(running, clock, "Node.Example.COM.").next() == addresses(
        "10.0.0.1:7000", "10.0.0.2:7000", "[fd00::1]:7000"
    )


async def test_an_srv_name_with_addresses_alone_gives_those(
    running: DnsServer, clock: Clock
) -> None:
    running.serve(host(NAME, "10.0.0.1"))

    assert await ask(running, clock).next() == addresses("10.0.0.1:7000")


async def test_aliases_are_followed(running: DnsServer, clock: Clock) -> None:
    running.serve(
        host("node.example.com", "10.0.0.1"),
        cname("alias.example.com", "node.example.com"),
        cname("nick.example.com", "alias.example.com"),
    )

    assert await ask(running, clock, "nick.example.com").next() == addresses("10.0.0.1:7000")


@pytest.mark.parametrize("lines", [[], [srv(NAME)], [srv("other.example.com", "a", 1)]])
async def test_a_missing_name_and_a_service_that_is_not_there_mean_nobody_for_a_short_time(
    running: DnsServer, clock: Clock, lines: list[str]
) -> None:
    running.serve(*lines, ttl_seconds=3000)
    source = ask(running, clock)

    assert await source.next() == frozenset()
    await source.next()
    assert SECONDS_MIN <= clock.now <= 30


async def test_an_answer_longer_than_a_datagram_comes_over_tcp(
    running: DnsServer, clock: Clock
) -> None:
    running.serve(*(srv(NAME, f"node-{number}.example.com", 7000) for number in range(200)))

    assert len(await ask(running, clock).next()) == 200


async def test_viewers_that_see_different_records_get_different_sets(
    running: DnsServer, clock: Clock
) -> None:
    with dns_server(srv(NAME, "inside.test", 1), srv(NAME, "both.test", 1)) as inside:
        running.serve(srv(NAME, "outside.test", 1), srv(NAME, "both.test", 1))
        answers = [await ask(server, clock).next() for server in (inside, running)]

    assert answers[0] & answers[1] == addresses("both.test:1")
    assert answers[0] != answers[1]


async def test_a_server_that_is_away_raises_and_answers_again_at_once_when_it_is_back(
    running: DnsServer, clock: Clock
) -> None:
    running.serve(srv(NAME, "a.test", 1))
    source = ask(running, clock, timeout=0.5)
    running.stop()
    with pytest.raises(Unreachable, match=r"_butterfly\._tcp\.example\.com"):
        await source.next()
    running.start()

    assert await source.next() == addresses("a.test:1")
    assert clock.now == 0


async def test_a_silent_server_raises_in_time(running: DnsServer, clock: Clock) -> None:
    running.serve(srv(NAME, "a.test", 1))
    running.pause()
    try:
        async with asyncio.timeout(30):
            with pytest.raises(Unreachable):
                await ask(running, clock, timeout=0.1).next()
    finally:
        running.resume()


async def test_a_server_that_waits_for_a_dead_one_is_silent_and_raises(
    running: DnsServer, clock: Clock
) -> None:
    with dns_server() as dead:
        running.serve(forward(dead.address))
    with pytest.raises(Unreachable):
        await ask(running, clock, timeout=0.3).next()


@pytest.mark.parametrize("code", ["SERVFAIL", "REFUSED"])
async def test_an_error_that_a_real_server_passes_on_is_no_answer(
    running: DnsServer, clock: Clock, code: str
) -> None:
    """dnsmasq asks another server, and passes on its refusal."""
    asked: list[bytes] = []

    def refusing(question: bytes) -> list[bytes]:
        asked.append(question)
        return [answered(question, code)]

    async with dns_script(refusing) as upstream:
        running.serve(forward(upstream))
        with pytest.raises(Unreachable, match=rf"answered {code}"):
            await ask(running, clock).next()
        assert asked

        running.serve(srv(NAME, "a.test", 1))
        assert await ask(running, clock).next() == addresses("a.test:1")


async def test_the_second_server_is_asked_when_the_first_is_silent(running: DnsServer) -> None:
    running.serve(srv(NAME, "a.test", 1))
    with dns_server() as silent:
        silent.pause()
        servers = (silent.address, running.address)
        answer = await look_up(Lookup(NAME, 7000, servers, timeout_seconds=1.0))

    assert answer.addresses == addresses("a.test:1")


async def test_without_servers_those_of_the_system_are_asked(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "root, to serve DNS at port 53 of a loopback address")
    address = parse_address("127.53.53.53:53")
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"search elsewhere.test\nnameserver {address.host}\n")
    lookup = Lookup(NAME, 7000, resolv_conf=conf)
    with dns_server(srv(NAME, "a.test", 1), address=address):
        assert (await look_up(lookup)).addresses == addresses("a.test:1")
    assert await servers_asked(lookup) == (address,)


async def test_a_system_without_dns_servers_raises(tmp_path: Path) -> None:
    lookup = Lookup(NAME, 7000, resolv_conf=tmp_path / "missing")

    with pytest.raises(Unreachable):
        await look_up(lookup)
    with pytest.raises(Unreachable, match="missing"):
        await servers_asked(lookup)
