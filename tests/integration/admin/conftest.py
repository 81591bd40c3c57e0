"""What these tests share: free ports, a configuration, a running stub node."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

STUB = [sys.executable, str(Path(__file__).with_name("stub_node.py"))]
PATIENCE_SECONDS = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on {port}"
            time.sleep(0.05)
        else:
            return


@dataclass(frozen=True)
class StubNode:
    """A stub that listens."""

    config: Path
    data_dir: Path
    http_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"


def write_config(folder: Path, *, port: int, http_port: int, extra: str = "") -> Path:
    path = folder / "node.toml"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    path.write_text(
        '[cluster]\ncluster_name = "test"\n'
        '[model]\nsource_type = "embedded"\nsource_path = "toy-llama"\n'
        f'[node]\nrole = "coordinator"\nbind_address = "127.0.0.1:{port}"\n'
        f'http_address = "127.0.0.1:{http_port}"\ndata_dir = "{folder / "data"}"\n{extra}'
    )
    return path


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A valid configuration of a node that does not run."""
    return write_config(tmp_path, port=free_port(), http_port=free_port())


@pytest.fixture
def start_stub(tmp_path: Path) -> Iterator[Callable[[str], StubNode]]:
    """Starts stub nodes by name, and ends them."""
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> StubNode:
        http_port = free_port()
        path = write_config(tmp_path / name, port=free_port(), http_port=http_port)
        running.append(subprocess.Popen([*STUB, "--config", str(path)], env=dict(os.environ)))
        wait_for_port(http_port)
        return StubNode(path, tmp_path / name / "data", http_port)

    yield start
    for process in running:
        process.kill()
        process.wait()
