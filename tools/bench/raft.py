"""Commit latency, throughput and failover of our Raft beside etcd, in one run.

All members and the client share this machine. Each system runs alone, in turns, with its log
on disk and synced. The client speaks to the leader; after ``kill -9`` of the leader it asks all
survivors at once, and the time ends with the first acknowledged write.

    python tools/bench/raft.py --markdown --kills 50
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "crates_py"))
sys.path.insert(0, str(ROOT))

from tools.bench.raft_servers import Etcd, Ours, Server, System, kill, version_of_etcd

CLIENTS = 32
ETCD_TIMES = ((50, 300), (50, 500), (100, 1000))
_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.005
_PUT_SECONDS = 10.0
_ATTEMPT_SECONDS = 0.1
_BETWEEN_ATTEMPTS_SECONDS = 0.005


@dataclass
class Found:
    """Of one system, over all its turns: milliseconds, and commits a second."""

    members: int
    commit_ms: list[float] = field(default_factory=list)
    commits_per_second: list[float] = field(default_factory=list)
    failover_ms: list[float] = field(default_factory=list)
    first_leader_ms: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


class Cluster:
    """The running members of one system."""

    def __init__(self, system: System, count: int) -> None:
        self._system = system
        self.servers = {number: system.start(number) for number in range(count)}

    async def first_leader(self) -> float:
        """Seconds that members just started took to have one, since a majority of them accepted
        connections (its imports and recovery lie before)."""
        listening: list[float] = []

        async def listens(server: Server) -> None:
            while True:
                if await server.listens():
                    listening.append(time.perf_counter())
                    return
                await asyncio.sleep(_LOOK_SECONDS)

        async with asyncio.TaskGroup() as tasks:
            for server in self.servers.values():
                tasks.create_task(listens(server))
            await self.leader()
            ended = time.perf_counter()
        return max(0.0, ended - listening[len(self.servers) // 2])

    async def leader(self) -> int:
        async with asyncio.timeout(_WAIT_SECONDS):
            while True:
                for number, server in self.servers.items():
                    if await server.leads():
                        return number
                await asyncio.sleep(_LOOK_SECONDS)

    async def until_written(self, servers: Sequence[Server], text: str) -> float:
        """When the first of them acknowledged a write, on the performance counter.

        A write that waits for a dead leader is not answered for seconds, by etcd above all; so
        short attempts follow each other closely, and none waits for the one before. All servers
        together get as many a second however many they are: more would be a load test.
        """
        done = asyncio.Event()
        acknowledged: list[float] = []

        async def attempt(server: Server) -> None:
            if await server.put(text, _ATTEMPT_SECONDS):
                acknowledged.append(time.perf_counter())
                done.set()

        async with asyncio.timeout(_WAIT_SECONDS), asyncio.TaskGroup() as tasks:
            while not done.is_set():
                for server in servers:
                    tasks.create_task(attempt(server))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_BETWEEN_ATTEMPTS_SECONDS * len(servers)):
                        await done.wait()
        return acknowledged[0]

    async def kill_the_leader(self) -> float:
        """Seconds from the kill to the first commit of the others; then it is back."""
        number = await self.leader()
        victim = self.servers.pop(number)
        kill(victim)
        began = time.perf_counter()
        took = await self.until_written(list(self.servers.values()), "after the kill") - began
        await victim.close()
        self.servers[number] = self._system.start(number)
        await self.until_written([self.servers[number]], "back again")
        return took

    async def stop(self) -> None:
        for server in self.servers.values():
            kill(server)
            await server.close()


async def turn(system: System, found: Found, *, writes: int, kills: int) -> None:
    """Start one system, measure it, stop it."""
    cluster = Cluster(system, found.members)
    try:
        found.first_leader_ms.append(await cluster.first_leader() * 1e3)
        leader = cluster.servers[await cluster.leader()]
        await cluster.until_written([leader], "warm")
        found.commit_ms += await one_by_one(leader, writes)
        found.commits_per_second.append(await side_by_side(leader, writes))
        found.rss_mb.append(statistics.mean(map(rss_mb, cluster.servers.values())))
        for _ in range(kills):
            found.failover_ms.append(await cluster.kill_the_leader() * 1e3)
    finally:
        await cluster.stop()


async def one_by_one(leader: Server, writes: int) -> list[float]:
    """Milliseconds of each commit of one client."""
    took = []
    for number in range(writes):
        began = time.perf_counter()
        if not await leader.put(f"write {number}", _PUT_SECONDS):
            raise RuntimeError("a healthy leader refused a write")
        took.append((time.perf_counter() - began) * 1e3)
    return took


async def side_by_side(leader: Server, writes: int) -> float:
    """Commits a second of many clients on one connection."""

    async def client(name: int) -> None:
        for number in range(writes // 4):
            if not await leader.put(f"client {name} write {number}", _PUT_SECONDS):
                raise RuntimeError("a healthy leader refused a write")

    began = time.perf_counter()
    await asyncio.gather(*(client(name) for name in range(CLIENTS)))
    return CLIENTS * (writes // 4) / (time.perf_counter() - began)


def rss_mb(server: Server) -> float:
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


async def measure(rounds: int, writes: int, kills: int) -> dict[str, Found]:
    """All systems in turns; the kills of a system are spread over the rounds."""
    found: dict[str, Found] = {}
    for number in range(rounds):
        share = kills // rounds + (number < kills % rounds)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for members in (3, 5, 7):
                ours = Ours(folder / str(members), members)
                of = found.setdefault(f"{ours.name}, {members} members", Found(members))
                await turn(ours, of, writes=writes, kills=share)
            for beat, election in ETCD_TIMES:
                etcd = Etcd(folder, 3, beat, election)
                of = found.setdefault(f"{etcd.name}, 3 members", Found(3))
                await turn(etcd, of, writes=writes, kills=share)
    return found


def table(found: dict[str, Found]) -> str:
    """One line a system, and the ratios that have a target."""
    lines = [
        "| | commit p50 / p99, ms | 32 clients, commits/s | kill -9 to commit p50 / max, ms "
        "(kills) | first leader, ms | RSS, MB |",
        "|---|---|---|---|---|---|",
    ]
    for name, of in found.items():
        commits = sorted(of.commit_ms)
        late = commits[int(len(commits) * 0.99)]
        lines.append(
            f"| {name} | {statistics.median(commits):.1f} / {late:.1f} "
            f"| {statistics.median(of.commits_per_second):.0f} "
            f"| {statistics.median(of.failover_ms):.0f} / {max(of.failover_ms):.0f} "
            f"({len(of.failover_ms)}) | {statistics.median(of.first_leader_ms):.0f} "
            f"| {statistics.mean(of.rss_mb):.0f} |"
        )
    ours = found["butterfly, 3 members"]
    for beat, election in ETCD_TIMES:
        name = f"etcd {beat}/{election}"
        theirs = found[f"{name}, 3 members"]
        lines += ["", f"To {name}, 3 members: {_ratios(ours, theirs)}."]
    return "\n".join(lines)


def _ratios(ours: Found, theirs: Found) -> str:
    def ratio(mine: list[float], other: list[float]) -> str:
        return f"{statistics.median(mine) / statistics.median(other):.2f}"

    return (
        f"failover p50 {ratio(ours.failover_ms, theirs.failover_ms)}, "
        f"commit p50 {ratio(ours.commit_ms, theirs.commit_ms)}, "
        f"throughput {ratio(ours.commits_per_second, theirs.commits_per_second)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Our Raft beside etcd.")
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--writes", type=int, default=400, help="of one client, per round")
    parser.add_argument("--kills", type=int, default=50, help="of each system's leader, in all")
    options = parser.parse_args()
    found = asyncio.run(measure(options.rounds, options.writes, options.kills))
    if options.markdown:
        print(f"etcd {version_of_etcd()}\n\n{table(found)}")
    else:
        print(json.dumps({name: vars(of) for name, of in found.items()}, indent=2))


if __name__ == "__main__":
    main()
