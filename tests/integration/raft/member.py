"""One Raft node as a process, for tests: ``member.py '<json>'``.

Takes commands as JSON lines on standard input and answers on standard output. Raft channels
are plain sockets here: a length, then the message; the first message is the sender's id.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from butterfly_cluster.raft import LAN, RaftNode
from butterfly_core.errors import ButterflyError, Unreachable
from butterfly_core.ids import NodeId

FRAME_BYTES_MAX = 32 << 20


class SocketChannel:
    """A ChannelLike over one TCP connection, without any protection: for tests only."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.peer_id = NodeId("")

    @property
    def closed(self) -> bool:
        return self._writer.is_closing()

    async def receive(self) -> bytes:
        try:
            length = int.from_bytes(await self._reader.readexactly(4), "little")
            if length > FRAME_BYTES_MAX:
                raise Unreachable("a frame too big")
            return await self._reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Unreachable("the connection ended") from error

    def send(self, message: bytes) -> bool:
        if self.closed or self._writer.transport.get_write_buffer_size() > FRAME_BYTES_MAX:
            return False
        self._writer.write(len(message).to_bytes(4, "little") + message)
        return True

    def close(self) -> None:
        self._writer.close()


class Member:
    """The node, its socket and its state machine: a list of texts."""

    def __init__(
        self, me: NodeId, data_dir: Path, founders: list[NodeId], address: tuple[str, int]
    ) -> None:
        self.me, self.items = me, list[str]()
        self.addresses: dict[NodeId, tuple[str, int]] = {}
        self._address = address
        self.node = RaftNode(
            me=me,
            voters=frozenset(founders),
            data_dir=data_dir,
            timing=LAN,
            dial=self.dial,
            apply=lambda _, body: self.items.append(json.loads(body)),
            snapshot=lambda: json.dumps(self.items).encode(),
            restore=self.restore,
            cluster_id="test",
            compact_after_entries=200,
        )

    def last_of(self, key: str) -> str | None:
        """What was written last with this first word."""
        return next((item for item in reversed(self.items) if item.split()[0] == key), None)

    def restore(self, state: bytes) -> Callable[[], None]:
        return partial(self.items.__setitem__, slice(None), json.loads(state))

    async def dial(self, peer: NodeId) -> SocketChannel:
        if peer not in self.addresses:
            raise Unreachable(f"no address of {peer}")
        channel = SocketChannel(*await asyncio.open_connection(*self.addresses[peer]))
        channel.peer_id = peer
        channel.send(self.me.encode())
        return channel

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = SocketChannel(reader, writer)
        try:
            async with asyncio.timeout(2):
                channel.peer_id = NodeId((await channel.receive()).decode())
            await self.node.accept(channel)
        except (ButterflyError, TimeoutError):
            channel.close()

    async def run(self) -> None:
        server = await asyncio.start_server(self.accept, *self._address)
        async with server, asyncio.TaskGroup() as tasks:
            tasks.create_task(self.node.run())
            say({"port": server.sockets[0].getsockname()[1]})
            await self.obey(tasks)

    async def obey(self, tasks: asyncio.TaskGroup) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        while line := await reader.readline():
            tasks.create_task(self.answer(json.loads(line)))
        sys.exit(0)

    async def answer(self, asked: dict[str, Any]) -> None:
        try:
            answer = await self.do(asked)
        except ButterflyError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        say({**answer, "id": asked["id"]})

    async def do(self, asked: dict[str, Any]) -> dict[str, Any]:
        seconds = asked.get("seconds", 5.0)
        match asked["do"]:
            case "addresses":
                told = asked["addresses"].items()
                self.addresses = {NodeId(peer): (host, port) for peer, (host, port) in told}
            case "write":
                body = json.dumps(asked["text"]).encode()
                return {"index": await self.node.propose(body, timeout_seconds=seconds)}
            case "read":
                await self.node.barrier(timeout_seconds=seconds)
                return {"last": self.last_of(asked["key"])}
            case "add":
                await self.node.add_voter(NodeId(asked["node"]), timeout_seconds=seconds)
            case "compact":
                self.node.compact_soon()
        return {
            **self.node.statistics(),
            "leader": self.node.leader,
            "is_leader": self.node.is_leader,
            "is_voter": self.node.is_voter,
            "voters": sorted(self.node.voters),
            "items": self.items,
        }


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(
        Member(
            NodeId(given["me"]), Path(given["data_dir"]), given["founders"], given["address"]
        ).run()
    )
