"""The engine process, seen from its node: started, listened to, ended, started again.

A dead engine is an event, not the node's end, and so is one that cannot be started, that hangs
or that talks nonsense. Nothing here decides: messages and deaths are handed to callbacks, and
``restart`` lets the next run begin.
"""

import asyncio
import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from butterfly.channel import (
    EngineSettings,
    FromEngine,
    Hello,
    Loaded,
    Splitter,
    ToEngine,
    pack,
    parse_from_engine,
)
from butterfly.node.engine_channel import Outgoing, receive
from butterfly_core.errors import EngineLost, ProtocolViolation

log = logging.getLogger(__name__)

HELLO_SECONDS: Final = 120.0
SILENT_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 2.5
_KILL_SECONDS: Final = 5.0
_PAUSE_FIRST_SECONDS: Final = 1.0
_PAUSE_MAX_SECONDS: Final = 30.0
_LOG_BYTES_MAX: Final = 8 << 20
_LOG_TAIL_CHARACTERS: Final = 500

# -P: a file in the current directory must not shadow a module. Tests put another one here.
PROGRAM: tuple[str, ...] = (sys.executable, "-P", "-m", "butterfly.engine_host")


@dataclass(frozen=True, slots=True)
class Death:
    """Why a run of the engine ended, and the last lines that it wrote to its log."""

    reason: str
    log_tail: str = ""


def pause_seconds(deaths_in_a_row: int) -> float:
    """How long to wait after this many deaths without a load that succeeded in between."""
    return min(_PAUSE_MAX_SECONDS, _PAUSE_FIRST_SECONDS * 2.0 ** min(deaths_in_a_row - 1, 16))


class Engine:
    """One engine process at a time. ``run`` keeps it alive until cancelled."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        log_path: Path,
        on_message: Callable[[FromEngine], None],
        on_death: Callable[[Death], None],
        hello_seconds: float = HELLO_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        """An engine is killed that does not say Hello in ``hello_seconds``, or says nothing
        for ``silent_seconds`` after it; it sends its statistics every second."""
        self._settings = settings
        self._log_path = log_path
        self._on_message = on_message
        self._on_death = on_death
        self._hello_seconds = hello_seconds
        self._silent_seconds = silent_seconds
        self._restart = asyncio.Event()
        self._outgoing: Outgoing | None = None
        self._log_start = 0
        self._deaths_in_a_row = 0
        self.process_id: int | None = None
        self.deaths_total = 0

    def restart(self) -> None:
        """Let the next run begin, after a death; it begins after a pause."""
        self._restart.set()

    async def send(self, message: ToEngine, connected: socket.socket | None = None) -> None:
        """Tell the engine; ``connected`` is handed over and closed here. Raises EngineLost.

        Returns when the message is in the queue: it arrives whole, or the engine dies.
        """
        try:
            if self._outgoing is None:
                raise EngineLost("no engine process runs")
            await self._outgoing.put(pack(message), connected)
        except BaseException:
            if connected is not None:
                connected.close()
            raise

    async def run(self) -> None:
        """Start the engine again and again, each time after ``restart`` and a pause."""
        while True:
            self._restart.clear()
            self._log_start = -1
            try:
                reason = await self._run_once()
            except OSError as error:
                reason = f"it cannot be started: {error}"
            self.deaths_total += 1
            self._deaths_in_a_row += 1
            log.error("the engine process ended: %s (its log: %s)", reason, self._log_path)
            self._on_death(Death(reason, self._log_tail()))
            await self._restart.wait()
            await asyncio.sleep(pause_seconds(self._deaths_in_a_row))

    async def _run_once(self) -> str:
        """Why the run ended. Raises OSError when it could not begin."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            ours.setblocking(False)
            process = await self._spawn(theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        try:
            given_up = await self._attend(ours, process.pid)
        except BaseException:
            ours.close()
            await _end(process, _STOP_SECONDS)
            raise
        ours.close()
        how = await _end(process, 0.0 if given_up else _STOP_SECONDS)
        return f"{given_up}; {how}" if given_up else how

    async def _attend(self, ours: socket.socket, process_id: int) -> str | None:
        """Write and listen until one of them ends; the reason when this side gave up."""
        outgoing = self._outgoing = Outgoing(ours)
        self.process_id = process_id
        try:
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(outgoing.run())
                given_up = await self._listen(ours)
                writing.cancel()
        finally:
            self._outgoing = self.process_id = None
        return given_up or outgoing.problem

    async def _spawn(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        self._rotate_log()
        with self._log_path.open("ab") as sink:
            self._log_start = sink.tell()
            return await asyncio.create_subprocess_exec(
                *PROGRAM,
                "--fd",
                str(theirs.fileno()),
                "--node",
                str(os.getpid()),
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

    def _log_tail(self) -> str:
        """The last lines of this run's log; empty when it wrote none."""
        if self._log_start < 0:
            return ""
        try:
            with self._log_path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, size - 4 * _LOG_TAIL_CHARACTERS))
                text = file.read(4 * _LOG_TAIL_CHARACTERS).decode(errors="replace").strip()
        except OSError:
            return ""
        return text[-_LOG_TAIL_CHARACTERS:].strip()

    async def _listen(self, ours: socket.socket) -> str | None:
        """Until the channel ends; the reason when this side gives the engine up."""
        splitter = Splitter()
        patience_seconds = self._hello_seconds
        while True:
            try:
                data = await receive(ours, patience_seconds)
                bodies = splitter.feed(data)
                messages = [parse_from_engine(body) for body in bodies]
            except ConnectionError:
                return None
            except TimeoutError:
                return f"it hangs: nothing was heard of it for {patience_seconds:g} s"
            except OSError as error:
                return f"its channel failed: {error}"
            except ProtocolViolation as error:
                return f"it sent what cannot be understood: {error}"
            if not data:
                return None
            for message in messages:
                if isinstance(message, Hello):
                    patience_seconds = self._silent_seconds
                if isinstance(message, Loaded):
                    self._deaths_in_a_row = 0
                self._on_message(message)


async def _end(process: asyncio.subprocess.Process, patience_seconds: float) -> str:
    """How it ended. Its channel is closed, so it ends by itself; after a while it is killed."""
    try:
        async with asyncio.timeout(patience_seconds):
            code = await process.wait()
            return f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    except TimeoutError:
        pass
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
    try:
        async with asyncio.timeout(_KILL_SECONDS):
            await process.wait()
    except TimeoutError:
        return "it cannot be killed (stuck in the kernel or its driver)"
    return "it had to be killed"
