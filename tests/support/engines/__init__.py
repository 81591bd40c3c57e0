"""Engine processes that need not import torch and transformers anew, for tests.

Importing them takes seven seconds of a core, and the end-to-end tests start hundreds of engines.
One process imports them once and forks; each fork runs ``butterfly.engine_host`` as if it had
been executed, in the launcher's place: with its descriptors, environment, directory and network
namespace. A launcher is what the node starts, waits for and kills: the fork ends with it, and it
ends as the fork did. ``BUTTERFLY_TEST_COLD_ENGINES=1`` lets every engine be executed instead.
"""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

from butterfly.node import engine
from tests.support.leash import die_with_the_tests

SOCKET_VARIABLE = "BUTTERFLY_TEST_ENGINES"
COLD_VARIABLE = "BUTTERFLY_TEST_COLD_ENGINES"
FOLDER = Path(__file__).parent
NODE = FOLDER / "warm_node.py"
_START_SECONDS = 30.0


def program(socket: str) -> tuple[str, ...]:
    """In the place of ``butterfly.node.engine.PROGRAM``."""
    launcher = str(FOLDER / "launch.py")
    return (sys.executable, "-I", "-S", launcher, socket, "butterfly.engine_host")


@cache
def forks_socket() -> str:
    """Where forks are asked for; the process that forks starts with the first question."""
    folder = tempfile.mkdtemp(prefix="engines-")
    path = Path(folder) / "socket"
    started = subprocess.Popen(
        [sys.executable, "-P", str(FOLDER / "forks.py"), str(path), "butterfly.engine_host"],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=die_with_the_tests,
    )
    atexit.register(_end, started, folder)
    deadline = time.monotonic() + _START_SECONDS
    while not path.exists():
        if started.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the process that forks engines does not listen at {path}")
        time.sleep(0.01)
    return str(path)


def are_cold() -> bool:
    return os.environ.get(COLD_VARIABLE, "") not in ("", "0")


@contextmanager
def forked() -> Iterator[None]:
    """Engines that this process starts meanwhile are forked."""
    if are_cold():
        yield
        return
    with patch.object(engine, "PROGRAM", program(forks_socket())):
        yield


def _end(forks: subprocess.Popen[bytes], folder: str) -> None:
    forks.kill()
    forks.wait()
    shutil.rmtree(folder, ignore_errors=True)
