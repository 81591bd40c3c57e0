import asyncio
import subprocess
import sys
import threading

import pytest

from butterfly.node.model import in_daemon_thread
from butterfly_core.errors import SourceError

HANGS = """
import asyncio, threading
from butterfly.config import ModelSection
from butterfly.node import model, reading as reading_module
from butterfly.node.local import Local
from butterfly_cluster.state import ClusterState

hung = threading.Event()

def open_source(*_, **__):
    hung.set()
    threading.Event().wait()

async def main():
    reading_module.open_source = open_source
    section = ModelSection(source_type="filesystem", source_path="/nowhere")
    reader = model.ModelReader(section, Local(None), embedded_root=None, cache=None)
    reading = asyncio.create_task(reader.read_until_known(ClusterState))
    while not hung.is_set():
        await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    print("cancelled", reading.cancelled())

asyncio.run(main())
print("ended")
"""


def test_a_source_that_hangs_holds_up_neither_the_cancelled_read_nor_the_exit() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60, check=False
    )

    assert (ended.returncode, ended.stdout) == (0, "cancelled True\nended\n"), ended.stderr


async def test_what_a_thread_returns_or_raises_comes_back() -> None:
    def fails() -> None:
        raise SourceError("no such bucket")

    assert await in_daemon_thread(lambda: 7) == 7
    with pytest.raises(SourceError, match="no such bucket"):
        await in_daemon_thread(fails)


async def test_a_result_that_nobody_waits_for_any_more_is_dropped() -> None:
    go, done = threading.Event(), threading.Event()

    def slow() -> None:
        go.wait()
        done.set()

    waiting = asyncio.create_task(in_daemon_thread(slow))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    go.set()
    assert await in_daemon_thread(lambda: done.wait(10))
