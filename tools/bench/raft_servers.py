"""The servers that ``raft.py`` compares, behind one interface: ours, and etcd by its gRPC API.

etcd's two messages are written by hand (``api/etcdserverpb/rpc.proto`` of etcd 3.4): PutRequest
has the key as field 1 and the value as field 2; StatusResponse has the leader as field 4 and
the member's own id in its header (field 1) as field 2.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol

import grpc.aio

from tests.support.s3 import free_port

MEMBER = Path(__file__).with_name("raft_member.py")


class Server(Protocol):
    """One member: a process, and one connection of a client to it."""

    process: subprocess.Popen[bytes]

    async def put(self, text: str, seconds: float) -> bool:
        """True once it is committed; False when it surely or maybe is not within the time."""
        ...

    async def leads(self) -> bool: ...

    async def listens(self) -> bool:
        """True once its peers' connections are accepted."""
        ...

    async def close(self) -> None: ...


class System(Protocol):
    """How the members of one kind of cluster are started."""

    name: str

    def start(self, number: int) -> Server: ...


class Ours:
    name = "butterfly"

    def __init__(self, folder: Path, count: int) -> None:
        self._folder = folder
        self._ids = [f"{number:032x}" for number in range(1, count + 1)]
        self._peers = {me: free_port() for me in self._ids}
        self._clients = [free_port() for _ in self._ids]

    def start(self, number: int) -> Server:
        me = self._ids[number]
        data_dir = self._folder / me
        data_dir.mkdir(parents=True, exist_ok=True)
        port = self._clients[number]
        given = {"me": me, "data_dir": str(data_dir), "peers": self._peers, "client_port": port}
        process = _spawn([sys.executable, str(MEMBER), json.dumps(given)])
        return _LineServer(process, port, self._peers[me])


class _LineServer:
    def __init__(self, process: subprocess.Popen[bytes], port: int, peer_port: int) -> None:
        self.process, self._port, self._peer_port = process, port, peer_port
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def put(self, text: str, seconds: float) -> bool:
        return bool((await self._ask({"put": text, "seconds": seconds})).get("done"))

    async def leads(self) -> bool:
        return bool((await self._ask({})).get("leads"))

    async def listens(self) -> bool:
        return await _accepts(self._peer_port)

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._reading is not None:
            self._reading.cancel()

    async def _ask(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            if self._writer is None:
                reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
                self._reading = asyncio.ensure_future(self._read(reader))
            number = next(self._numbers)
            future = asyncio.get_running_loop().create_future()
            self._waiting[number] = future
            self._writer.write(json.dumps({"id": number, **body}).encode() + b"\n")
            answer: dict[str, Any] = await future
            return answer
        except OSError:
            return {}

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                answer = json.loads(line)
                future = self._waiting.pop(answer["id"])
                if not future.done():  # its asker has given up
                    future.set_result(answer)
        self._writer = None
        for future in self._waiting.values():
            if not future.done():
                future.set_result({})
        self._waiting.clear()


class Etcd:
    """``beat`` and ``election`` in milliseconds, as etcd's flags have them."""

    def __init__(self, folder: Path, count: int, beat: int, election: int) -> None:
        self.name = f"etcd {beat}/{election}"
        self._folder, self._beat, self._election = (
            folder / f"etcd-{beat}-{election}",
            beat,
            election,
        )
        self._peers = [free_port() for _ in range(count)]
        self._clients = [free_port() for _ in range(count)]
        self._started: set[int] = set()

    def start(self, number: int) -> Server:
        url = "http://127.0.0.1:{}".format
        peers = enumerate(self._peers)
        fresh = number not in self._started
        self._started.add(number)
        command = [
            *(shutil.which("etcd") or "etcd", "--name", f"m{number}"),
            *("--data-dir", str(self._folder / str(number))),
            *("--heartbeat-interval", str(self._beat)),
            *("--election-timeout", str(self._election)),
            *("--listen-peer-urls", url(self._peers[number])),
            *("--initial-advertise-peer-urls", url(self._peers[number])),
            *("--listen-client-urls", url(self._clients[number])),
            *("--advertise-client-urls", url(self._clients[number])),
            *("--initial-cluster", ",".join(f"m{i}={url(port)}" for i, port in peers)),
            *("--initial-cluster-state", "new" if fresh else "existing"),
        ]
        return _EtcdServer(_spawn(command), self._clients[number], self._peers[number])


class _EtcdServer:
    def __init__(self, process: subprocess.Popen[bytes], port: int, peer_port: int) -> None:
        self.process, self._peer_port = process, peer_port
        eager = [("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 50)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=eager)
        self._put = self._channel.unary_unary("/etcdserverpb.KV/Put")
        self._status = self._channel.unary_unary("/etcdserverpb.Maintenance/Status")

    async def put(self, text: str, seconds: float) -> bool:
        request = _field(1, b"bench") + _field(2, text.encode())
        try:
            await self._put(request, timeout=seconds)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def leads(self) -> bool:
        try:
            answer: bytes = await self._status(b"", timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        found = dict(_fields(answer))
        header = dict(_fields(found.get(1, b"")))
        return bool(found.get(4)) and found.get(4) == header.get(2)

    async def listens(self) -> bool:
        return await _accepts(self._peer_port)

    async def close(self) -> None:
        await self._channel.close()


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def version_of_etcd() -> str:
    told = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"etcd Version: (\S+)", told.stdout)
    return found[1] if found else "unknown"


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _fields(data: bytes) -> list[tuple[int, Any]]:
    """Numbers and values of a message that has varints and lengths only."""
    found: list[tuple[int, Any]] = []
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        value, position = _read_varint(data, position)
        if tag & 7 == 2:
            found.append((tag >> 3, data[position : position + value]))
            position += value
        else:
            found.append((tag >> 3, value))
    return found


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _spawn(command: list[str]) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=quiet, stderr=quiet, env=dict(os.environ))


def kill(server: Server) -> None:
    """``kill -9``, and wait until the system has it."""
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
