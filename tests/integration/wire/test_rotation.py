"""A secret is replaced in three steps, node by node, while all nodes call each other."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from butterfly.admin.main import main
from butterfly_core.address import Address
from butterfly_core.errors import ButterflyError, NotAuthenticated
from butterfly_core.ids import NodeId
from butterfly_wire.credentials import CredentialSource, SecretFile
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from butterfly_wire.watching import CredentialWatch
from tests.support.certificates import OperatorAuthority, write_files
from tests.support.wire_world import HERE, until

IDS = [NodeId(letter * 32) for letter in "abc"]


async def whoami(caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"caller": caller}


@dataclass
class Endpoint:
    """One node as far as the wire knows it."""

    watch: CredentialWatch
    listener: PeerListener
    address: Address

    def pool(self) -> PeerPool:
        identity = self.watch.identity
        return PeerPool(identity, cluster_name="test", node_id=identity.node_id)

    async def call(self, other: "Endpoint") -> None:
        """Over a new connection, which is what a rotation can break."""
        pool = self.pool()
        try:
            answer = await pool.call(other.address, "whoami", {}, timeout_seconds=20)
            assert answer == {"caller": self.watch.identity.node_id}
        finally:
            await pool.close()


@asynccontextmanager
async def endpoints(*sources: CredentialSource) -> AsyncIterator[list[Endpoint]]:
    made: list[Endpoint] = []
    watching: list[asyncio.Task[None]] = []
    for node_id, source in zip(IDS, sources, strict=False):
        watch = CredentialWatch(source, node_id)
        listener = PeerListener(HERE, watch.identity, cluster_name="test", node_id=node_id)
        listener.on_call("whoami", whoami)
        made.append(Endpoint(watch, listener, await listener.start()))
        watching.append(asyncio.create_task(watch.run(every_seconds=0.02)))
    try:
        yield made
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        for endpoint in made:
            await endpoint.listener.close()


class Traffic:
    """Calls between all pairs, all the time."""

    def __init__(self, nodes: list[Endpoint]) -> None:
        self._pairs = [(a, b) for a in nodes for b in nodes if a is not b]
        self.calls_count = 0
        self.failures: list[ButterflyError] = []

    async def run(self) -> None:
        while True:
            for one, other in self._pairs:
                try:
                    await one.call(other)
                except ButterflyError as error:
                    self.failures.append(error)
                self.calls_count += 1

    async def a_round(self) -> None:
        """Wait until every pair has called once more, from here on."""
        goal = self.calls_count + 2 * len(self._pairs)
        await until(lambda: self.calls_count >= goal)


async def rotate(path: Path, stage: str) -> None:
    code = await asyncio.to_thread(main, ["secret", "rotate", "--stage", stage, str(path)])
    assert code == 0


async def test_no_call_fails_while_a_secret_is_replaced_and_the_old_one_is_refused_after(
    tmp_path: Path, nothing_left: None
) -> None:
    paths = [tmp_path / name for name in "abc"]
    main(["secret", "create", str(paths[0])])
    old = tmp_path / "old"
    for path in (*paths[1:], old):
        shutil.copy(paths[0], path)
    async with endpoints(*map(SecretFile, paths)) as nodes:
        kept = nodes[0].pool()
        await kept.call(nodes[1].address, "whoami", {}, timeout_seconds=20)
        traffic = Traffic(nodes)
        calling = asyncio.create_task(traffic.run())
        await traffic.a_round()

        for count, stage in enumerate(("add", "switch", "finish"), 1):
            for node, path in zip(nodes, paths, strict=True):
                if stage == "add" and path is not paths[0]:
                    shutil.copy(paths[0], path)  # as the command says: the same file everywhere
                else:
                    await rotate(path, stage)
                await until(lambda node=node, count=count: node.watch.changes_count == count)  # type: ignore[misc]
                await traffic.a_round()

        calling.cancel()
        await asyncio.wait([calling])
        assert traffic.failures == []
        assert len({node.watch.identity.credentials.mints for node in nodes}) == 1
        # A connection that stood all the time still stands.
        await kept.call(nodes[1].address, "whoami", {}, timeout_seconds=20)
        await kept.close()
        left_behind = CredentialWatch(SecretFile(old), NodeId("d" * 32)).identity
        pool = PeerPool(left_behind, cluster_name="test", node_id=left_behind.node_id)
        with pytest.raises(NotAuthenticated, match="same cluster secret file"):
            await pool.call(nodes[0].address, "whoami", {}, timeout_seconds=20)
        await pool.close()


async def test_no_call_fails_while_an_authority_is_replaced(
    tmp_path: Path, nothing_left: None
) -> None:
    old, new = OperatorAuthority("old"), OperatorAuthority("new")
    folders = [tmp_path / name for name in "abc"]
    shown = [old.sign() for _ in folders]
    sources = [write_files(f, old.pem, s) for f, s in zip(folders, shown, strict=True)]
    async with endpoints(*sources) as nodes:
        traffic = Traffic(nodes)
        calling = asyncio.create_task(traffic.run())
        for step in ("both", "new certificates", "new alone"):
            for number, node in enumerate(nodes):
                if step == "new certificates":
                    shown[number] = new.sign()
                ca_pem = new.pem if step == "new alone" else old.pem + new.pem
                before = node.watch.changes_count
                write_files(folders[number], ca_pem, shown[number])
                await until(lambda n=node, b=before: n.watch.changes_count > b)  # type: ignore[misc]
                await traffic.a_round()

        calling.cancel()
        await asyncio.wait([calling])
        assert traffic.failures == []
        assert {node.watch.identity.credentials.accepts for node in nodes} == {("CN=new",)}
