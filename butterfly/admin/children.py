"""Child processes that write to log files and never stay behind.

Each runs on a leash (it dies with this process) and in a process group of its own, so that a
Ctrl-C at the terminal reaches only us, and what it started itself can be ended with it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

POLL_SECONDS = 0.05
TAIL_BYTES_MAX = 65536


@dataclass(frozen=True)
class Child:
    """One started program."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self.process.poll()

    def ending(self) -> str:
        """How it ended, for people."""
        code = self.exit_code
        if code is None:
            return "still runs"
        return (
            f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        )

    def log_tail(self, lines: int) -> list[str]:
        """The last lines that it wrote."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - TAIL_BYTES_MAX))
            return log.read().decode(errors="replace").splitlines()[-lines:]


class Children:
    """A set of children; leaving the ``with`` block ends all of them."""

    def __init__(self, *, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self._all: list[Child] = []

    def start(
        self, name: str, command: Sequence[str], log_path: Path, environ: Mapping[str, str]
    ) -> Child:
        """Start a command whose output goes to the end of the log file. Raises OSError."""
        leash = [sys.executable, "-m", "butterfly.admin.leash", str(os.getpid())]
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                [*leash, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environ),
                start_new_session=True,
            )
        child = Child(name, process, log_path)
        self._all.append(child)
        return child

    @property
    def dead(self) -> list[Child]:
        return [child for child in self._all if child.exit_code is not None]

    @property
    def alive(self) -> list[Child]:
        return [child for child in self._all if child.exit_code is None]

    def stop(self) -> None:
        """SIGTERM to all, a grace, then SIGKILL to them and to what they started."""
        for child in self.alive:
            _signal_group(child, signal.SIGTERM, only_leader=True)
        deadline = time.monotonic() + self._grace_seconds
        while self.alive and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        for child in self._all:
            _signal_group(child, signal.SIGKILL, only_leader=False)
            child.process.wait()

    def __enter__(self) -> "Children":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        except KeyboardInterrupt:  # a second Ctrl-C: no more patience
            self._grace_seconds = 0.0
            self.stop()


def _signal_group(child: Child, number: signal.Signals, *, only_leader: bool) -> None:
    """The group's id is its leader's process id; an empty group is no error."""
    try:
        if only_leader:
            child.process.send_signal(number)
        else:
            os.killpg(child.process.pid, number)
    except ProcessLookupError:
        return


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
