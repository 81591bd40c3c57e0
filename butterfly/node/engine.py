"""The engine process, seen from its node: started, listened to, ended, started again.

A dead engine is an event, not the node's end. Nothing here decides: messages and deaths are
handed to callbacks, and ``restart`` lets the next run begin.
"""

import asyncio
import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from butterfly.channel import (
    EngineSettings,
    FromEngine,
    Splitter,
    ToEngine,
    pack,
    parse_from_engine,
)
from butterfly_core.errors import EngineLost

log = logging.getLogger(__name__)

_RECEIVE_BYTES = 1 << 18
_STOP_SECONDS = 3.0
_LOG_BYTES_MAX = 8 << 20


class Engine:
    """One engine process at a time. ``run`` keeps it alive until cancelled."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        log_path: Path,
        on_message: Callable[[FromEngine], None],
        on_death: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._log_path = log_path
        self._on_message = on_message
        self._on_death = on_death
        self._restart = asyncio.Event()
        self._sending = asyncio.Lock()
        self._socket: socket.socket | None = None
        self.process_id: int | None = None
        self.deaths_total = 0

    def restart(self) -> None:
        """Let the next run begin, after a death."""
        self._restart.set()

    async def send(self, message: ToEngine, connected: socket.socket | None = None) -> None:
        """Tell the engine; ``connected`` is handed over and closed here. Raises EngineLost."""
        data = pack(message)
        async with self._sending:
            try:
                await self._write(data, connected)
            except OSError as error:
                raise EngineLost(f"the engine process is gone: {error}") from error
            finally:
                if connected is not None:
                    connected.close()

    async def _write(self, data: bytes, connected: socket.socket | None) -> None:
        if self._socket is None:
            raise EngineLost("no engine process runs")
        if connected is not None:
            socket.send_fds(self._socket, [data[:1]], [connected.fileno()])
            data = data[1:]
        await asyncio.get_running_loop().sock_sendall(self._socket, data)

    async def run(self) -> None:
        """Start the engine again and again, each time after ``restart``."""
        while True:
            self._restart.clear()
            reason = await self._run_once()
            self.deaths_total += 1
            log.error("the engine process ended: %s (its log: %s)", reason, self._log_path)
            self._on_death(reason)
            await self._restart.wait()

    async def _run_once(self) -> str:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        try:
            process = await self._spawn(theirs)
        finally:
            theirs.close()
        self._socket, self.process_id = ours, process.pid
        try:
            await self._listen(ours)
            return await self._exit_reason(process)
        finally:
            self._socket = self.process_id = None
            ours.close()
            await _end(process)

    async def _spawn(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        self._rotate_log()
        with self._log_path.open("ab") as sink:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "butterfly.engine_host",
                "--fd",
                str(theirs.fileno()),
                "--engine",
                secrets.token_hex(8),
                "--settings",
                json.dumps(asdict(self._settings)),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={
                    **os.environ,
                    "HF_HUB_OFFLINE": "1",
                    "TORCHINDUCTOR_CACHE_DIR": str(self._log_path.parent / "inductor"),
                },
            )

    def _rotate_log(self) -> None:
        if self._log_path.exists() and self._log_path.stat().st_size > _LOG_BYTES_MAX:
            self._log_path.replace(self._log_path.with_suffix(".old.log"))

    async def _listen(self, ours: socket.socket) -> None:
        splitter = Splitter()
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(ours, _RECEIVE_BYTES)
            except ConnectionError:
                return
            if not data:
                return
            for body in splitter.feed(data):
                self._on_message(parse_from_engine(body))

    async def _exit_reason(self, process: asyncio.subprocess.Process) -> str:
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                code = await process.wait()
        except TimeoutError:
            return "it closed its channel and hangs"
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


async def _end(process: asyncio.subprocess.Process) -> None:
    """The channel is closed, so the process ends by itself; after a while it is killed."""
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
