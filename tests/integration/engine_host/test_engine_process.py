"""The engine process as its node drives it: over the channel, with a real model."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import pytest

from butterfly.channel import (
    Cancel,
    Drop,
    Emitted,
    EngineSettings,
    FromEngine,
    Hello,
    Link,
    LinkLost,
    Load,
    Loaded,
    LoadFailed,
    ModelSource,
    Progressed,
    Statistics,
    Submit,
    WarmedUp,
    WarmUp,
)
from butterfly.handover import encode_checkpoint
from butterfly.node.engine import Death, Engine
from butterfly_core.errors import EngineLost
from butterfly_core.generation import FinishReason, GenerationRequest, SamplingParams
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.source import open_source
from tests.support import engines

TOY = Path(__file__).parents[3] / "butterfly" / "demo_model" / "toy-llama"
SETTINGS = EngineSettings("cpu", "auto", 1, 16, 64, 8, 8)
REQUEST = GenerationRequest("r", (5, 6, 7), 6, SamplingParams(temperature=0.0), ignore_eos=True)
M = TypeVar("M")


@dataclass
class Driver:
    """Keeps everything the engine said; waits for one kind of message."""

    heard: list[FromEngine] = field(default_factory=list)
    deaths: list[Death] = field(default_factory=list)

    async def death(self, *, count: int = 1) -> Death:
        async with asyncio.timeout(120):
            while len(self.deaths) < count:
                await asyncio.sleep(0.02)
        return self.deaths[count - 1]

    async def until(self, kind: type[M], *, count: int = 1) -> M:
        async with asyncio.timeout(120):
            while True:
                found = [message for message in self.heard if isinstance(message, kind)]
                if len(found) >= count:
                    return found[count - 1]
                await asyncio.sleep(0.02)

    def tokens(self, request_id: str) -> tuple[list[int], FinishReason | None, str | None]:
        ids: list[int] = []
        finish = error = None
        for message in self.heard:
            if isinstance(message, Emitted):
                for piece in message.tokens:
                    if piece.request_id == request_id:
                        ids += piece.token_ids
                        finish, error = piece.finish, piece.error
        return ids, finish, error

    async def answered(self, request_id: str) -> tuple[list[int], FinishReason | None, str | None]:
        async with asyncio.timeout(120):
            while self.tokens(request_id)[1] is None:
                await asyncio.sleep(0.02)
        return self.tokens(request_id)


@asynccontextmanager
async def running(
    folder: Path,
    settings: EngineSettings = SETTINGS,
    *,
    silent_seconds: float = 30.0,
    starts: bool = True,
    cold: bool = False,
) -> AsyncIterator[tuple[Engine, Driver]]:
    """``cold`` where the process itself is what matters: it is executed, not forked."""
    driver = Driver()
    engine = Engine(
        settings,
        log_path=folder / "engine.log",
        on_message=driver.heard.append,
        on_death=driver.deaths.append,
        silent_seconds=silent_seconds,
    )
    with nullcontext() if cold else engines.forked():
        task = asyncio.create_task(engine.run())
        try:
            if starts:
                await driver.until(Hello)
            yield engine, driver
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


def order(folder: Path, epoch: int = 1) -> Load:
    source = open_source("filesystem", str(TOY))
    checkpoint = read_checkpoint(source)
    source.close()
    assert checkpoint.manifest is not None
    return Load(
        epoch=epoch,
        model=checkpoint.manifest.root,
        source=ModelSource("filesystem", str(TOY), None, None, str(folder / "cache"), 0),
        checkpoint=encode_checkpoint(checkpoint),
        start=0,
        stop=6,
        layer_count=6,
        tied=True,
        kv_tokens=512,
        stages=1,
    )


async def test_an_engine_loads_proves_warms_up_and_answers(tmp_path: Path) -> None:
    async with running(tmp_path, cold=True) as (engine, driver):
        hello = await driver.until(Hello)
        assert hello.capacity.device == "cpu"
        assert hello.capacity.memory_free_bytes > 0

        await engine.send(order(tmp_path))
        loaded = await driver.until(Loaded)
        await engine.send(WarmUp(1, 60.0))
        assert (await driver.until(WarmedUp)).problem is None
        await engine.send(Submit(1, REQUEST))
        first = await driver.answered("r")
        await engine.send(Submit(1, replace(REQUEST, request_id="again")))
        again = await driver.answered("again")

        phases = [m.phase for m in driver.heard if isinstance(m, Progressed)]
        assert phases[-2:] == ["uploading", "warmup"]
        assert loaded.bytes_from_source > 0
        assert first[0] == again[0]
        assert (len(first[0]), first[1]) == (6, FinishReason.LENGTH)
        spoken = sum(isinstance(message, Statistics) for message in driver.heard)
        newest = await driver.until(Statistics, count=spoken + 2)
        assert newest.values["kv_blocks_total"] == 32


async def test_what_is_held_is_kept_for_the_next_epoch_and_dropped_on_demand(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (engine, driver):
        await engine.send(order(tmp_path))
        first = await driver.until(Loaded)
        await engine.send(order(tmp_path, epoch=2))
        kept = await driver.until(Loaded, count=2)
        await engine.send(Drop())
        await engine.send(order(tmp_path, epoch=3))
        anew = await driver.until(Loaded, count=3)

    assert (kept.bytes_from_source, kept.bytes_from_cache) == (0, 0)
    assert first.part_digests == kept.part_digests == anew.part_digests
    assert anew.bytes_from_source + anew.bytes_from_cache == first.bytes_from_source


async def test_messages_about_an_older_epoch_change_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as (engine, driver):
        await engine.send(order(tmp_path, epoch=2))
        await driver.until(Loaded)
        await engine.send(Submit(1, REQUEST))
        _, finish, error = await driver.answered("r")
        await engine.send(WarmUp(1, 5.0))
        warmed = await driver.until(WarmedUp)
        ours, theirs = socket.socketpair()
        await engine.send(Link(1, "in", b"a" * 32, b"b" * 32, "aead"), theirs)

        assert finish is FinishReason.ERROR
        assert str(error).startswith("EngineLost: epoch 1")
        assert "over" in str(warmed.problem)
        assert await asyncio.to_thread(ours.recv, 1) == b""
        ours.close()


async def test_a_lost_link_is_told_once_and_ends_what_was_asked(tmp_path: Path) -> None:
    async with running(tmp_path) as (engine, driver):
        await engine.send(replace(order(tmp_path), stop=3, stages=2))
        await driver.until(Loaded)
        out, to_engine = socket.socketpair()
        back, from_engine = socket.socketpair()
        await engine.send(Link(1, "out", b"a" * 32, b"b" * 32, "aead"), to_engine)
        await engine.send(Link(1, "in", b"c" * 32, b"d" * 32, "aead"), from_engine)
        await engine.send(Submit(1, REQUEST))
        assert await asyncio.to_thread(out.recv, 1)
        out.close()
        back.close()

        lost = await driver.until(LinkLost)
        _, finish, _ = await driver.answered("r")

    assert lost.epoch == 1
    assert finish is FinishReason.ERROR
    assert sum(isinstance(message, LinkLost) for message in driver.heard) == 1


async def test_a_cancelled_request_ends_and_the_next_one_runs(tmp_path: Path) -> None:
    async with running(tmp_path) as (engine, driver):
        await engine.send(order(tmp_path))
        await driver.until(Loaded)
        await engine.send(Submit(1, replace(REQUEST, tokens_max=400)))
        await engine.send(Cancel("r"))
        _, finish, _ = await driver.answered("r")
        await engine.send(Submit(1, replace(REQUEST, request_id="next")))

        assert finish is FinishReason.CANCELLED
        assert (await driver.answered("next"))[1] is FinishReason.LENGTH


async def test_a_source_that_is_gone_is_a_failed_load_and_not_the_engines_end(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as (engine, driver):
        good = order(tmp_path)
        await engine.send(replace(good, source=replace(good.source, source_path="/nowhere")))
        failed = await driver.until(LoadFailed)
        await engine.send(replace(good, epoch=2))
        loaded = await driver.until(Loaded)

    assert "/nowhere" in failed.message
    assert loaded.epoch == 2


async def test_a_killed_engine_is_told_and_runs_again_only_when_asked(tmp_path: Path) -> None:
    async with running(tmp_path, cold=True) as (engine, driver):
        assert engine.process_id is not None
        os.kill(engine.process_id, signal.SIGKILL)
        assert (await driver.death()).reason == "killed by signal 9"
        with pytest.raises(EngineLost):
            await engine.send(Drop())

        engine.restart()
        again = await driver.until(Hello, count=2)

        assert again.engine != (await driver.until(Hello)).engine


async def test_a_stopped_engine_is_killed_and_the_reason_told(tmp_path: Path) -> None:
    async with running(tmp_path, silent_seconds=3.0, cold=True) as (engine, driver):
        assert engine.process_id is not None
        process_id = engine.process_id
        os.kill(process_id, signal.SIGSTOP)
        death = await driver.death()

        assert "nothing was heard of it for 3 s" in death.reason
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


async def test_an_idle_engine_shows_that_it_lives(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, driver):
        assert (await driver.until(Statistics, count=2)).values == {}


async def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    async with running(tmp_path, replace(SETTINGS, device="no such device"), starts=False) as (
        _,
        driver,
    ):
        death = await driver.death()

    assert death.reason == "exit code 1"
    assert "no such device" in death.log_tail
    assert len(death.log_tail) <= 500


async def test_a_process_that_cannot_be_made_is_a_death_and_not_the_nodes_end(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "missing"
    async with running(folder, starts=False) as (engine, driver):
        first = await driver.death()
        folder.mkdir()
        engine.restart()
        await driver.until(Hello)

    assert first.reason.startswith("it cannot be started: ")
    assert "engine.log" in first.reason
    assert first.log_tail == ""


async def test_a_cancelled_send_leaves_whole_messages(tmp_path: Path) -> None:
    async with running(tmp_path, cold=True) as (engine, driver):
        await engine.send(order(tmp_path))
        await driver.until(Loaded)
        assert engine.process_id is not None
        os.kill(engine.process_id, signal.SIGSTOP)
        long = replace(REQUEST, prompt=(1 << 20,) * 100_000)
        sends = [
            asyncio.create_task(engine.send(Submit(1, replace(long, request_id=f"long {n}"))))
            for n in range(100)
        ]
        await asyncio.sleep(0.2)
        waiting = [send for send in sends if not send.done()]
        for send in sends:
            send.cancel()
        await asyncio.gather(*sends, return_exceptions=True)
        os.kill(engine.process_id, signal.SIGCONT)
        await engine.send(Submit(1, REQUEST))
        answer = await driver.answered("r")

    assert waiting
    assert answer[1] is FinishReason.LENGTH
    assert driver.deaths == []


async def test_ending_takes_less_than_what_a_stopped_engine_would(tmp_path: Path) -> None:
    async with asyncio.timeout(60), running(tmp_path, cold=True) as (engine, _):
        assert engine.process_id is not None
        process_id = engine.process_id
        os.kill(process_id, signal.SIGSTOP)
    with pytest.raises(ProcessLookupError):
        os.kill(process_id, 0)


async def test_any_error_of_a_load_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as (engine, driver):
        await engine.send(replace(order(tmp_path), checkpoint=b"no checkpoint"))
        failed = await driver.until(LoadFailed)
        await engine.send(order(tmp_path, epoch=2))
        await driver.until(Loaded)

    assert failed.epoch == 1
    assert driver.deaths == []


def test_an_engine_whose_node_died_while_it_started_ends_at_once() -> None:
    ours, theirs = socket.socketpair()  # kept open: its end is not what ends the engine
    ended_before = subprocess.Popen([sys.executable, "-c", ""])
    ended_before.wait()
    settings = json.dumps(asdict(SETTINGS))
    command = [sys.executable, "-m", "butterfly.engine_host", "--node", str(ended_before.pid)]
    command += ["--fd", str(theirs.fileno()), "--engine", "a", "--settings", settings]
    with ours, theirs:
        engine = subprocess.run(
            command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, timeout=120, check=False
        )

    assert engine.returncode == 1
    assert engine.stderr == b"the node is gone\n"
