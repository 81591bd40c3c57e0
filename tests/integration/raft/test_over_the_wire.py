"""Births, joins and restarts as a user sees them: founding and Raft over the real TLS wire."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from butterfly_cluster.founding import Founding
from butterfly_cluster.founding_messages import (
    Proposal,
    Verdict,
    WhoAmI,
    proposal_from_map,
    verdict_from_map,
    whoami_from_map,
)
from butterfly_cluster.founding_sight import FoundingSettings
from butterfly_cluster.identity import load_or_create
from butterfly_cluster.raft import LAN, RaftNode
from butterfly_core.address import parse_address
from butterfly_core.errors import Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.channel import Channel
from butterfly_wire.dialing import dial_channel
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from butterfly_wire.secret import insecure_secret
from tests.support.directories import Listed


class App:
    """What the node program does with founding and Raft, in small."""

    def __init__(
        self, data_dir: Path, address: str, seeds: tuple[str, ...], *, coordinator: bool = False
    ) -> None:
        self.address, self.items = address, list[Any]()
        self._data_dir = load_or_create(data_dir)
        self.me = self._data_dir.identity.node_id
        settings = FoundingSettings(
            "demo",
            address,
            role="coordinator" if coordinator else "worker",
            grace_seconds=1.0,
        )
        self.founding = Founding(self._data_dir, settings, Listed(*seeds))
        self._tls = TlsIdentity(insecure_secret("demo"), self.me)
        self._pool = PeerPool(self._tls, cluster_name="demo", node_id=self.me)
        self._listener = PeerListener(
            parse_address(address), self._tls, cluster_name="demo", node_id=self.me
        )
        self._listener.on_call("whoami", self._whoami)
        self._listener.on_call("promise", self._promise)
        self._listener.on_channel("raft", self._accept)
        self.addresses: dict[NodeId, str] = {}
        self.node: RaftNode | None = None

    @property
    def raft(self) -> RaftNode:
        assert self.node is not None
        return self.node

    async def run(self) -> None:
        await self._listener.start()
        try:
            formation = await self.founding.form_or_join(self)
            self.addresses |= formation.members
            self.node = RaftNode(
                me=self.me,
                voters=formation.voters,
                data_dir=self._data_dir.path,
                timing=LAN,
                dial=self._dial,
                apply=lambda _, body: self.items.append(json.loads(body)),
                snapshot=lambda: json.dumps(self.items).encode(),
                restore=self._restore,
                learner=formation.learner,
                cluster_id=formation.cluster_id,
            )
            self.node.introduce(frozenset(self.addresses))
            await self.node.run()
        finally:
            await self._listener.close()
            await self._pool.close()
            self._data_dir.close()

    async def whoami(self, address: str) -> WhoAmI:
        where = parse_address(address)
        return whoami_from_map(await self._pool.call(where, "whoami", {}, timeout_seconds=2))

    async def promise(self, address: str, proposal: Proposal, *, expect: NodeId) -> Verdict:
        answer = await self._pool.call(
            parse_address(address), "promise", proposal.to_map(), timeout_seconds=2, expect=expect
        )
        return verdict_from_map(answer)

    async def _whoami(self, _: NodeId, __: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.founding.answer_whoami().to_map()

    async def _promise(self, caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.founding.answer_promise(caller, proposal_from_map(body)).to_map()

    async def _accept(self, channel: Channel) -> None:
        if self.node is not None:
            await self.node.accept(channel)

    async def _dial(self, peer: NodeId) -> Channel:
        if peer not in self.addresses:
            raise Unreachable(f"no address of {peer}")
        return await dial_channel(
            parse_address(self.addresses[peer]),
            "raft",
            self._tls,
            cluster_name="demo",
            node_id=self.me,
            expect=peer,
            timeout_seconds=1,
        )

    def _restore(self, state: bytes) -> Callable[[], None]:
        return partial(self.items.__setitem__, slice(None), json.loads(state))


class Apps:
    """Runs apps in one event loop; all learn all addresses, as from the replicated state."""

    def __init__(self) -> None:
        self.running: dict[App, asyncio.Task[None]] = {}

    def start(self, *apps: App) -> None:
        for app in apps:
            self.running[app] = asyncio.ensure_future(app.run())
        everyone = {app.me: app.address for app in self.running}
        for app in self.running:
            app.addresses |= everyone

    async def stop(self, *apps: App) -> None:
        for app in apps:
            task = self.running.pop(app)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def all_hold(self, item: Any) -> None:
        await until(lambda: all(item in app.items for app in self.running))

    async def write(self, app: App, item: Any) -> None:
        await until(lambda: app.node is not None)
        await app.raft.propose(json.dumps(item).encode(), timeout_seconds=20)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while True:
            if holds():
                return
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def some_apps() -> AsyncIterator[Apps]:
    apps = Apps()
    try:
        yield apps
    finally:
        await apps.stop(*apps.running)


def free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as sockets:
        opened = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for one in opened:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in opened]


async def test_a_coordinator_founds_alone_workers_join_and_all_restart(tmp_path: Path) -> None:
    first, *rest = free_addresses(3)

    def fresh() -> list[App]:
        return [
            App(tmp_path / "0", first, (), coordinator=True),
            *(App(tmp_path / where[-5:], where, (first,)) for where in rest),
        ]

    async with some_apps() as apps:
        coordinator, *workers = fresh()
        apps.start(*workers)
        await asyncio.sleep(0.3)
        assert "no node of" in workers[0].founding.state.reason
        apps.start(coordinator)
        await apps.write(workers[0], "one")
        await apps.all_hold("one")
        for worker in workers:
            assert not worker.raft.is_voter
            await coordinator.raft.add_voter(worker.me, timeout_seconds=20)
        await apps.write(workers[1], "two")
        await apps.all_hold("two")
        identities = {app.me for app in apps.running}
        await apps.stop(*list(apps.running))

        again = fresh()
        apps.start(*again)
        await apps.write(again[2], "three")
        await apps.all_hold("three")

        assert {app.me for app in again} == identities
        assert all(app.items == ["one", "two", "three"] for app in again)
        assert all(app.raft.voters == identities for app in again)


async def test_three_equal_nodes_found_together_and_outlive_one(tmp_path: Path) -> None:
    seeds = tuple(free_addresses(3))
    async with some_apps() as apps:
        apps.start(*(App(tmp_path / where[-5:], where, seeds) for where in seeds))
        one, two, three = apps.running
        await apps.write(two, "together")
        await apps.all_hold("together")
        assert {app.raft.voters for app in apps.running} == {frozenset({one.me, two.me, three.me})}

        leader = next(app for app in apps.running if app.raft.is_leader)
        await apps.stop(leader)
        survivor = next(iter(apps.running))
        await until(lambda: survivor.raft.leader not in (None, leader.me))
        await apps.write(survivor, "without the leader")
        await apps.all_hold("without the leader")
