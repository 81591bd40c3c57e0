"""Real ``butterfly-node`` processes on loopback, for end-to-end tests and benchmarks.

Every node is its own process with its own folder; what a node printed is shown when a wait
fails. Nothing is left running: the processes die with this one.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import engines
from tests.support.leash import die_with_the_tests
from tests.support.s3 import free_port

START_SECONDS = 180.0
ENGINE_END_SECONDS = 10.0
_LOG_LINES = 40


class NotInTime(AssertionError):
    """What was waited for did not come; carries the nodes' last words."""


class LeftBehind(AssertionError):
    """A process runs on whose node is gone."""


@dataclass
class LocalNode:
    """One node: its files, its ports and, while it runs, its process."""

    name: str
    folder: Path
    settings: dict[str, dict[str, Any]]
    environment: Mapping[str, str]
    prefix: Sequence[str] = ()
    """What the command is run with, as ``ip netns exec NAME``; it must not fork."""
    cold: bool = False
    """Execute the engine instead of forking it (see ``tests.support.engines``)."""
    process: subprocess.Popen[bytes] | None = None
    asked_to_end: bool = False

    @property
    def peer(self) -> str:
        return str(self.settings["node"]["bind_address"])

    @property
    def url(self) -> str:
        return f"http://{self.settings['node']['http_address']}"

    @property
    def data_dir(self) -> Path:
        return Path(self.settings["node"]["data_dir"])

    @property
    def config_path(self) -> Path:
        return self.folder / f"{self.name}.toml"

    @property
    def log(self) -> str:
        path = self.folder / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, *flags: str) -> None:
        self.config_path.write_text(to_toml(self.settings))
        self.asked_to_end = False
        program = ["-m", "butterfly.node.main"]
        environment = {**os.environ, **self.environment}
        if not (self.cold or engines.are_cold()):
            program = ["-P", str(engines.NODE)]
            environment[engines.SOCKET_VARIABLE] = engines.forks_socket()
        settings = ["--config", str(self.config_path)]
        command = [*self.prefix, sys.executable, *program, *settings, *flags]
        with (self.folder / f"{self.name}.log").open("ab") as sink:
            self.process = subprocess.Popen(
                command,
                stdout=sink,
                stderr=sink,
                env=environment,
                preexec_fn=die_with_the_tests,
            )

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        assert self.process is not None
        self.asked_to_end = True
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_seconds: float = 60.0) -> int:
        """SIGTERM, and wait; the exit code."""
        assert self.process is not None
        self.asked_to_end = True
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_seconds)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def ended_unasked(self) -> bool:
        """True when it was started, and ended without ``kill`` or ``stop``."""
        return self.process is not None and not self.is_running and not self.asked_to_end

    def engines(self) -> list[int]:
        """Engine processes of this node, also those that outlived it: they write its log."""
        log = str(self.data_dir.resolve() / "engine.")
        return [
            int(process.name)
            for process in Path("/proc").glob("[0-9]*")
            if _is_engine(process, log)
        ]

    def engine_pid(self) -> int:
        """The process id of this node's engine; not of what launched it, if that is another."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (child,) = [
            int(child)
            for child in children.read_text().split()
            if b"butterfly.engine_host" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        forked = [pid for pid in self.engines() if pid != child]
        return forked[0] if forked else child

    def get(self, path: str) -> tuple[int, Any]:
        """Status code and JSON body of a GET; (0, reason) when nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")
        except OSError as error:
            return 0, str(error)

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Status code and JSON body of a POST."""
        asked = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=120) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")

    def status(self) -> dict[str, Any]:
        """The document of ``/status``; empty when nobody answers."""
        code, body = self.get("/status")
        return body if code == 200 else {}

    def errors(self) -> str:
        return "\n".join(error["message"] for error in self.status().get("errors", []))


@dataclass
class LocalCluster:
    nodes: list[LocalNode] = field(default_factory=list)

    def start(self) -> None:
        for node in self.nodes:
            node.start()

    def wait(
        self,
        reached: Callable[[], object],
        what: str,
        *,
        timeout_seconds: float = START_SECONDS,
    ) -> None:
        """Look until it is so. Raises NotInTime with every node's status and log.

        It does not wait on when a node ended that should run.
        """
        deadline = time.monotonic() + timeout_seconds
        while not reached():
            ended = [
                f"{node.name} (exit code {node.process.returncode})"
                for node in self.nodes
                if node.process is not None and node.ended_unasked
            ]
            if ended:
                raise NotInTime(f"{what} did not come: {ended} ended\n{self.story()}")
            if time.monotonic() > deadline:
                raise NotInTime(f"{what} did not come in {timeout_seconds:.0f} s\n{self.story()}")
            time.sleep(0.1)

    def wait_until_operational(
        self, nodes: Sequence[LocalNode] | None = None, *, after_epoch: int = 0
    ) -> int:
        """Until these nodes (default: all) serve in one epoch; which one."""
        wanted = self.nodes if nodes is None else list(nodes)

        def serving() -> bool:
            seen = [node.status() for node in wanted]
            epochs = {status.get("epoch", 0) for status in seen}
            return (
                all(status.get("state") == "OPERATIONAL" for status in seen)
                and len(epochs) == 1
                and min(epochs) > after_epoch
            )

        self.wait(serving, f"OPERATIONAL on {[node.name for node in wanted]}")
        return int(wanted[0].status()["epoch"])

    def coordinator(self) -> LocalNode:
        """The node that leads now, as the others see it."""
        found: list[LocalNode] = []

        def known() -> bool:
            statuses = {node.name: node.status() for node in self.nodes if node.is_running}
            leaders = {status.get("coordinator") for status in statuses.values()}
            if len(leaders) != 1:
                return False
            leads = leaders.pop()
            found[:] = [n for n in self.nodes if statuses.get(n.name, {}).get("node_id") == leads]
            return bool(found)

        self.wait(known, "one coordinator")
        return found[0]

    def story(self) -> str:
        """Statuses and the last lines of every log, for a failed test."""
        told = []
        for node in self.nodes:
            lines = [line for line in node.log.splitlines() if "api.access" not in line]
            told.append(f"--- {node.name} {json.dumps(node.status())[:2000]}")
            told += lines[-_LOG_LINES:]
        return "\n".join(told)

    def stop(self) -> None:
        """Kill what runs. Raises LeftBehind when an engine outlives its node."""
        running = [node for node in self.nodes if node.is_running]
        for node in running:
            assert node.process is not None
            node.process.kill()
        for node in running:
            assert node.process is not None
            node.process.wait()
        deadline = time.monotonic() + ENGINE_END_SECONDS
        while left := {node.name: pids for node in self.nodes if (pids := node.engines())}:
            if time.monotonic() > deadline:
                for pid in (pid for pids in left.values() for pid in pids):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                raise LeftBehind(f"engine processes outlived their nodes: {left}")
            time.sleep(0.05)


@contextmanager
def local_cluster(
    folder: Path,
    model: Mapping[str, Any],
    *,
    nodes: int = 3,
    equal: bool = False,
    start: bool = True,
    cold: bool = False,
    environments: Sequence[Mapping[str, str]] = (),
    **sections: Mapping[str, Any],
) -> Iterator[LocalCluster]:
    """A cluster as in the seed (one coordinator, workers that name it), or of equal nodes.

    ``model`` is the ``[model]`` section; other sections are merged over the defaults here. The
    engines of ``cold`` nodes are executed, the others' forked (see ``tests.support.engines``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    secret = folder / "secret"
    secret.write_text(secrets.token_hex(32) + "\n")
    secret.chmod(0o600)
    peers = [f"127.0.0.1:{free_port()}" for _ in range(nodes)]
    cluster = LocalCluster()
    for i, peer in enumerate(peers):
        first = i == 0
        seeds = peers if equal else ([] if first else peers[:1])
        settings: dict[str, dict[str, Any]] = {
            "cluster": {"cluster_name": "test", "seed_nodes": seeds, "quorum_size": nodes},
            "model": dict(model),
            "node": {
                "role": "coordinator" if first and not equal else "worker",
                "bind_address": peer,
                "http_address": f"127.0.0.1:{free_port()}",
                "data_dir": str(folder / f"node-{i}"),
                "capacity": round(0.9 / nodes, 3),
            },
            "engine": {"kv_cache_tokens": 2048, "threads": 1},
            "security": {"cluster_secret_file": str(secret)},
        }
        for section, keys in sections.items():
            settings[section] = {**settings.get(section, {}), **keys}
        environment = environments[i] if i < len(environments) else {}
        cluster.nodes.append(LocalNode(f"node-{i}", folder, settings, environment, cold=cold))
    try:
        if start:
            cluster.start()
        yield cluster
    finally:
        cluster.stop()


def to_toml(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """TOML of one level of sections; JSON's strings, numbers, booleans and lists are TOML's."""
    lines = []
    for section, keys in settings.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _is_engine(process: Path, log: str) -> bool:
    """By /proc: what it was started as, and that its errors go to this log (also a renamed one)."""
    try:
        if b"butterfly.engine_host" not in (process / "cmdline").read_bytes():
            return False
        return str((process / "fd" / "2").readlink()).startswith(log)
    except OSError:
        return False  # it ended meanwhile, is a zombie, or is somebody else's
