"""One Raft node of the product behind a client port, for ``raft.py``.

The log is on disk with ``fdatasync``, peers talk over the real wire with TLS. A client sends
JSON lines: ``{"id": 1, "put": "text", "seconds": 1.0}`` or ``{"id": 2}`` for who leads.
"""

import asyncio
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "crates_py"))

from butterfly_cluster.raft import LAN, RaftNode
from butterfly_core.address import Address
from butterfly_core.errors import ButterflyError
from butterfly_core.ids import NodeId
from butterfly_wire.channel import Channel
from butterfly_wire.dialing import dial_channel
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.listener import PeerListener
from butterfly_wire.secret import insecure_secret

CLUSTER = "bench"


class Member:
    """``peers`` are the peer ports by id, this node's among them."""

    def __init__(self, me: NodeId, data_dir: Path, peers: dict[NodeId, int]) -> None:
        self._me, self._peers = me, peers
        self._newest = b"null"
        self._tls = TlsIdentity(insecure_secret(CLUSTER), me)
        self._listener = PeerListener(
            Address("127.0.0.1", peers[me]), self._tls, cluster_name=CLUSTER, node_id=me
        )
        self._node = RaftNode(
            me=me,
            voters=frozenset(peers),
            data_dir=data_dir,
            timing=LAN,
            dial=self._dial,
            apply=self._apply,
            snapshot=lambda: self._newest,
            restore=lambda state: partial(self._apply, 0, state),
            cluster_id=CLUSTER,
        )
        self._listener.on_channel("raft", self._node.accept)

    def _apply(self, _: int, body: bytes) -> None:
        self._newest = body

    async def _dial(self, peer: NodeId) -> Channel:
        return await dial_channel(
            Address("127.0.0.1", self._peers[peer]),
            "raft",
            self._tls,
            cluster_name=CLUSTER,
            node_id=self._me,
            expect=peer,
            timeout_seconds=LAN.connect_seconds,
        )

    async def run(self, client_port: int) -> None:
        await self._listener.start()
        server = await asyncio.start_server(self._serve, "127.0.0.1", client_port)
        async with server:
            await self._node.run()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.TaskGroup() as tasks:
            while line := await reader.readline():
                tasks.create_task(self._answer(json.loads(line), writer))
        writer.close()

    async def _answer(self, asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        done = True
        if "put" in asked:
            try:
                body = json.dumps(asked["put"]).encode()
                await self._node.propose(body, timeout_seconds=asked["seconds"])
            except ButterflyError:
                done = False
        answer = {"id": asked["id"], "done": done, "leads": self._node.is_leader}
        writer.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    peers = {NodeId(peer): port for peer, port in given["peers"].items()}
    member = Member(NodeId(given["me"]), Path(given["data_dir"]), peers)
    asyncio.run(member.run(given["client_port"]))
