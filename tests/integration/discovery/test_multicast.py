"""Nodes hear each other through real sockets: on loopback, and between two hosts of a bridge."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import pytest

from butterfly_core.address import Address, parse_address
from butterfly_core.errors import Unreachable
from butterfly_discovery.multicast import MulticastSource
from butterfly_discovery.multicast_messages import CLOCK_SECONDS_MAX, Announcement, encode
from tests.support.multicast_host import KEY
from tests.support.needs import need

ROOT = Path(__file__).parents[3]
LOOPBACK = "127.0.0.1"
PERIOD_SECONDS = 0.1
A, B, C = (parse_address(f"10.0.0.{number}:7000") for number in (1, 2, 3))


@pytest.fixture
def group() -> Address:
    """A group and port of this test alone."""
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("", 0))
        return Address("239.255.70.71", free.getsockname()[1])


def source(
    me: Address,
    group: Address,
    cluster_name: str = "lab",
    *,
    key: bytes = KEY,
    interface: str = LOOPBACK,
    wall_clock: Callable[[], float] = time.time,
) -> MulticastSource:
    return MulticastSource(
        cluster_name,
        me,
        key=key,
        group=group,
        interface=interface,
        period_seconds=PERIOD_SECONDS,
        wall_clock=wall_clock,
    )


@asynccontextmanager
async def running(*sources: MulticastSource) -> AsyncIterator[None]:
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        own = [tasks.create_task(each.run()) for each in sources]
        yield
        for task in own:
            task.cancel()


async def until(source: MulticastSource, wanted: set[Address]) -> None:
    """Take answers until the wanted one comes."""
    while await source.next() != wanted:
        pass


async def dropped(source: MulticastSource, reason: str) -> None:
    while not source.dropped.get(reason):
        await asyncio.sleep(0.01)


def send(group: Address, *datagrams: bytes) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as out:
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(LOOPBACK))
        for each in datagrams:
            out.sendto(each, (group.host, group.port))


async def test_nodes_hear_each_other_come_and_go(group: Address) -> None:
    first, second, third = (source(me, group) for me in (A, B, C))
    async with running(first):
        await until(first, {A})
        async with running(second, third):
            await asyncio.gather(*(until(each, {A, B, C}) for each in (first, second, third)))
        await until(first, {A})


@pytest.mark.parametrize(("cluster_name", "key"), [("other", KEY), ("lab", b"another secret 16")])
async def test_another_cluster_in_the_same_group_is_counted_and_not_heard(
    group: Address, cluster_name: str, key: bytes
) -> None:
    ours, other = source(A, group), source(B, group, cluster_name, key=key)
    async with running(ours, other):
        await dropped(ours, "not of this cluster")
        assert await ours.next() == {A}


async def test_garbage_and_repeated_datagrams_are_counted_and_change_nothing(
    group: Address,
) -> None:
    ours = source(A, group)
    once = encode(Announcement(B, int(time.time() * 1000)), cluster_name="lab", key=KEY)
    async with running(ours):
        await until(ours, {A})
        send(group, b"", b"\0" * 60, b"BFa1", b"x" * 4000, once, once)
        await until(ours, {A, B})
        await dropped(ours, "repeated")
        await until(ours, {A})
        send(group, once)
        while ours.dropped["repeated"] < 2:
            await asyncio.sleep(0.01)

    assert ours.dropped == {"garbage": 4, "repeated": 2}


async def test_a_flood_of_garbage_is_cut_and_nodes_are_heard_after_it(group: Address) -> None:
    ours = source(A, group)
    async with running(ours):
        await until(ours, {A})
        while not ours.dropped.get("too many"):
            send(group, *[b"garbage"] * 100)
            await asyncio.sleep(0)
        second = source(B, group)
        async with running(second):
            await until(ours, {A, B})


async def test_a_clock_that_is_off_is_told(group: Address) -> None:
    ours = source(A, group)
    off = source(B, group, wall_clock=lambda: time.time() + CLOCK_SECONDS_MAX + 60)
    async with running(ours, off):
        await dropped(ours, "clocks differ")
        assert ours.problem
        assert "NTP" in ours.problem
        assert await ours.next() == {A}


async def test_a_clock_that_jumps_back_is_still_heard(group: Address) -> None:
    ticks = count()
    jumping = source(B, group, wall_clock=lambda: time.time() - 5 * next(ticks))
    ours = source(A, group)
    async with running(ours, jumping):
        await until(ours, {A, B})
        while next(ticks) < 15:
            await asyncio.sleep(PERIOD_SECONDS)

    assert ours.dropped == {}


async def test_a_missing_interface_is_told_and_tried_again_for_ever(group: Address) -> None:
    ours = source(A, group, interface="none0")
    async with running(ours):
        for _ in range(3):
            while not ours.problem:
                await asyncio.sleep(0.01)
            with pytest.raises(Unreachable, match="none0"):
                await ours.next()


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with an eth0 each, joined by a bridge in a third."""
    need(os.geteuid() == 0 and shutil.which("ip") is not None, "root and iproute2")
    bridge, *both = (f"bfm{os.getpid()}{which}" for which in "sab")
    made = []
    try:
        for name in (bridge, *both):
            ip("netns", "add", name)
            made.append(name)
        ip("-n", bridge, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", bridge, "link", "set", "br0", "up")
        for number, name in enumerate(both, 1):
            port = f"port{number}"
            peer = ["peer", "name", "eth0", "netns", name]
            ip("-n", bridge, "link", "add", port, "type", "veth", *peer)
            ip("-n", bridge, "link", "set", port, "master", "br0", "up")
            ip("-n", name, "addr", "add", f"10.9.8.{number}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield both[0], both[1]
    finally:
        for name in made:
            ip("netns", "del", name)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


@asynccontextmanager
async def hearing(
    namespace: str, me: str, group: str, interface: str
) -> AsyncIterator[asyncio.StreamReader]:
    command = ["ip", "netns", "exec", namespace, sys.executable, "-m"]
    process = await asyncio.create_subprocess_exec(
        *command,
        "tests.support.multicast_host",
        me,
        group,
        interface,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'crates_py'}"},
    )
    try:
        assert process.stdout
        yield process.stdout
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def line(lines: asyncio.StreamReader, wanted: str) -> None:
    async with asyncio.timeout(60):
        while (await lines.readline()).decode().strip() != wanted:
            assert not lines.at_eof()


@pytest.mark.parametrize(
    ("group", "interface"),
    [("239.255.70.70:7946", "10.9.8.2"), ("[ff02::7070]:7946", "eth0")],
    ids=["ipv4", "ipv6"],
)
async def test_two_hosts_of_a_lan_hear_each_other(
    hosts: tuple[str, str], group: str, interface: str
) -> None:
    a, b, both = "10.9.8.1:7000", "10.9.8.2:7000", "10.9.8.1:7000 10.9.8.2:7000"
    async with hearing(hosts[0], a, group, "eth0") as first:
        async with hearing(hosts[1], b, group, interface) as second:
            await line(second, both)
            await line(first, both)
            await asyncio.to_thread(ip, "-n", hosts[1], "link", "set", "eth0", "down")
            await line(first, a)
            await asyncio.to_thread(ip, "-n", hosts[1], "link", "set", "eth0", "up")
            await line(first, both)
        await line(first, a)
