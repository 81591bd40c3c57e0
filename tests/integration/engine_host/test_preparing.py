"""A model that is prepared beside another one costs what differs, in bytes read and in memory."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from butterfly.channel import (
    GiveUp,
    Load,
    Loaded,
    LoadFailed,
    ModelSource,
    Prepare,
    Preparing,
    Submit,
)
from butterfly.engine_host.loading import Weights
from butterfly.engine_host.peer_links import PeerHub
from butterfly.handover import encode_checkpoint
from butterfly_core.errors import VerificationFailed
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.loader import LoadResult
from butterfly_weights.proving import create_manifest, write_manifest
from butterfly_weights.source import open_source
from tests.integration.engine_host.test_engine_process import REQUEST, Driver, order, running
from tests.support.checkpoints import Shape, write_checkpoint

LAYERS = 4
CHANGED = "model.layers.2.mlp.up_proj.weight"


def publish(folder: Path) -> None:
    source = open_source("filesystem", str(folder))
    write_manifest(source, create_manifest(source))
    source.close()


def change(folder: Path, data: bytes) -> None:
    """Other bytes for the tensor with these: the first one is flipped."""
    for path in folder.glob("*.safetensors"):
        content = path.read_bytes()
        if data in content:
            path.write_bytes(content.replace(data, bytes([data[0] ^ 1]) + data[1:]))


def order_of(folder: Path, model: str) -> Load:
    source = open_source("filesystem", str(folder))
    described = encode_checkpoint(read_checkpoint(source))
    source.close()
    where = ModelSource("filesystem", str(folder), None, None, None, 0)
    return Load(1, model, where, described, 0, LAYERS, LAYERS, False, 64, 1)


def load(weights: Weights, order: Load) -> LoadResult:
    return weights.load(order, on_progress=lambda _: None, cancelled=lambda: False)


def prepare(weights: Weights, order: Load) -> LoadResult:
    return weights.prepare(order, on_progress=lambda _: None, cancelled=lambda: False)


def places(weights: Weights) -> dict[str, int]:
    """Where each tensor lies in memory."""
    return {name: tensor.data_ptr() for name, tensor in weights.as_torch().items()}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two revisions with manifests; one tensor is another one."""
    first, second = tmp_path / "a", tmp_path / "b"
    tensors = write_checkpoint(first, Shape())
    shutil.copytree(first, second)
    change(second, tensors[CHANGED])
    publish(first)
    publish(second)
    return first, second


def test_only_what_differs_is_read_and_parts_that_are_the_same_lie_in_memory_once(
    folders: tuple[Path, Path],
) -> None:
    weights = Weights(PeerHub(lambda _: None))
    load(weights, order_of(folders[0], "a"))
    before, old = places(weights), weights.as_torch()

    result = prepare(weights, order_of(folders[1], "b"))

    assert result.bytes_from_source == old[CHANGED].nbytes
    assert places(weights) == before, "what serves is not touched"
    source = open_source("filesystem", str(folders[1]))
    assert weights.prepared_digests == create_manifest(source).part_digests()

    taken = load(weights, order_of(folders[1], "b"))

    assert (taken.bytes_from_source, taken.bytes_from_cache) == (0, 0)
    after = weights.as_torch()
    moved = {name for name, at in places(weights).items() if before[name] != at}
    assert moved == {name for name in before if ".layers.2." in name}, "no old stretch stays"
    assert {name for name in before if not torch.equal(after[name], old[name])} == {CHANGED}
    assert weights.part_digests == create_manifest(source).part_digests()


def test_without_a_manifest_all_of_it_is_read_and_its_digests_are_computed(
    tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    plain = tmp_path / "plain"
    expected = write_checkpoint(plain, Shape(seed=2))
    weights = Weights(PeerHub(lambda _: None))
    load(weights, order_of(folders[0], "a"))

    result = prepare(weights, order_of(plain, "plain"))

    assert result.bytes_loaded == sum(len(data) for data in expected.values())
    source = open_source("filesystem", str(plain))
    assert weights.prepared_digests == create_manifest(source).part_digests()


def test_what_was_prepared_is_forgotten_when_it_fails_or_another_load_comes(
    folders: tuple[Path, Path],
) -> None:
    weights = Weights(PeerHub(lambda _: None))
    first, second = order_of(folders[0], "a"), order_of(folders[1], "b")
    load(weights, first)
    prepare(weights, second)

    load(weights, first)
    assert weights.prepared_digests == {}
    prepare(weights, second)
    weights.give_up()
    assert weights.prepared_digests == {}

    prepared = read_checkpoint(open_source("filesystem", str(folders[1])))
    (flipped,) = (t for t in prepared.tensors if t.name == CHANGED)
    path = folders[1] / flipped.shard
    content = bytearray(path.read_bytes())
    content[flipped.offset + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(VerificationFailed, match=CHANGED):
        prepare(weights, order_of(folders[1], "b"))
    assert weights.prepared_digests == {}
    assert load(weights, first).bytes_from_source == 0


async def test_an_engine_answers_from_the_present_model_while_it_prepares_another(
    tmp_path: Path,
) -> None:
    present = order(tmp_path)
    offered = replace(present, epoch=0, model="other")
    async with running(tmp_path) as (engine, driver):
        await engine.send(present)
        await driver.until(Loaded)

        await engine.send(Prepare(7, offered))
        await engine.send(Submit(1, REQUEST))
        answer = await driver.answered("r")
        held = await fate(driver, 7)
        await engine.send(GiveUp())
        await engine.send(Prepare(8, replace(offered, checkpoint=b"?")))
        failed = await fate(driver, 8)
        await engine.send(Submit(1, replace(REQUEST, request_id="again")))

        assert isinstance(held, Loaded)
        assert (held.bytes_from_source, held.bytes_from_cache) == (0, 0)
        assert isinstance(failed, LoadFailed)
        assert await driver.answered("again") == answer


async def fate(driver: Driver, number: int) -> Loaded | LoadFailed:
    """How the preparation of this number ended."""
    async with asyncio.timeout(120):
        while True:
            for message in driver.heard:
                told = message.told if isinstance(message, Preparing) else None
                if isinstance(told, Loaded | LoadFailed) and message == Preparing(number, told):
                    return told
            await asyncio.sleep(0.02)
