"""Starts and kills member processes and speaks to them."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from butterfly_core.ids import NodeId
from tests.support.namespaces import Host

ROOT = Path(__file__).parents[3]
MEMBER = Path(__file__).with_name("member.py")


class Process:
    """One member, as long as it lives."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process, self.port = process, port
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reading = asyncio.ensure_future(self._read())

    async def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Ask and wait for the answer; {} when the process dies first."""
        number = len(self._asked) + 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, "id": number, **more}).encode() + b"\n")
        return await future

    async def kill(self) -> None:
        """``kill -9``."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reading
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            answer = json.loads(line)
            self._asked[answer["id"]].set_result(answer)
        for future in self._asked.values():
            if not future.done():
                future.set_result({})


class Fleet:
    """Members by id; all know each other's addresses."""

    def __init__(self, directory: Path, founders: int, hosts: Sequence[Host] = ()) -> None:
        """With ``hosts``, each founder runs on one of its own."""
        self._directory = directory
        self.founders = [NodeId(f"{number:032x}") for number in range(1, founders + 1)]
        self.members: dict[NodeId, Process] = {}
        self.hosts = dict(zip(self.founders, hosts, strict=False))
        self._addresses: dict[NodeId, tuple[str, int]] = {}

    async def start(self, *nodes: NodeId) -> None:
        """Start members and tell all where they are."""
        for me in nodes:
            self.members[me] = await self._spawn(me)
            self._addresses[me] = (self._host(me), self.members[me].port)
        for process in self.members.values():
            await process.ask("addresses", addresses=self._addresses)

    def _host(self, me: NodeId) -> str:
        return self.hosts[me].address if me in self.hosts else "127.0.0.1"

    async def _spawn(self, me: NodeId) -> Process:
        data_dir = self._directory / me
        data_dir.mkdir(exist_ok=True)
        given = {
            "me": me,
            "data_dir": str(data_dir),
            "founders": self.founders,
            "address": self._addresses.get(me, (self._host(me), 0)),
        }
        prefix = self.hosts[me].prefix if me in self.hosts else ()
        process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            str(MEMBER),
            json.dumps(given),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 24,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'crates_py'}"},
        )
        assert process.stdout is not None
        async with asyncio.timeout(60):
            first = json.loads(await process.stdout.readline())
        return Process(process, first["port"])

    async def kill(self, *nodes: NodeId) -> None:
        """Kill all of them before waiting for any."""
        await asyncio.gather(*(self.members.pop(me).kill() for me in nodes))

    async def leader(self) -> NodeId:
        """Wait for one that leads."""
        async with asyncio.timeout(60):
            while True:
                for me, process in self.members.items():
                    if (await process.ask("status")).get("is_leader"):
                        return me
                await asyncio.sleep(0.02)

    async def write(self, me: NodeId, text: str, seconds: float = 20.0) -> dict[str, Any]:
        """Write until it is acknowledged; a text may be written more than once then."""
        async with asyncio.timeout(60):
            while True:
                answer = await self.members[me].ask("write", text=text, seconds=seconds)
                if "index" in answer:
                    return answer
                await asyncio.sleep(0.02)

    async def until_all_have(self, texts: set[str]) -> None:
        """Wait until every member applied all of them."""
        async with asyncio.timeout(60):
            while True:
                answers = [await process.ask("status") for process in self.members.values()]
                if all(texts <= set(answer["items"]) for answer in answers):
                    return
                await asyncio.sleep(0.05)
