"""What an engine keeps of a load that failed: proven parts with a manifest, else nothing."""

from pathlib import Path

import pytest

from butterfly.channel import Load, ModelSource
from butterfly.engine_host.loading import Weights
from butterfly.engine_host.peer_links import PeerHub
from butterfly.handover import encode_checkpoint
from butterfly_core.errors import ButterflyError, VerificationFailed
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.loader import LoadResult
from butterfly_weights.proving import create_manifest, write_manifest
from butterfly_weights.source import open_source
from tests.support.checkpoints import Shape, write_checkpoint

LAYERS = 4
LAST = "model-00003-of-00003.safetensors"


def order_of(folder: Path) -> Load:
    source = open_source("filesystem", str(folder))
    described = encode_checkpoint(read_checkpoint(source))
    where = ModelSource("filesystem", str(folder), None, None, None, 0)
    return Load(1, "model", where, described, 0, LAYERS, LAYERS, False, 64, 1)


def load(weights: Weights, order: Load) -> LoadResult:
    return weights.load(order, on_progress=lambda _: None, cancelled=lambda: False)


def test_after_a_failure_only_what_was_not_proven_is_read_again(tmp_path: Path) -> None:
    expected = write_checkpoint(tmp_path, Shape())
    source = open_source("filesystem", str(tmp_path))
    write_manifest(source, create_manifest(source))
    order = order_of(tmp_path)
    sound = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    weights = Weights(PeerHub(lambda _: None))

    with pytest.raises(VerificationFailed):
        load(weights, order)
    kept = sum(tensor.nbytes for tensor in weights.as_torch().values())
    (tmp_path / LAST).write_bytes(sound)
    result = load(weights, order)

    total = sum(len(data) for data in expected.values())
    assert kept + result.bytes_from_source == pytest.approx(total, rel=0.01)
    assert weights.as_torch().keys() == expected.keys()
    assert weights.part_digests == create_manifest(source).part_digests()


def test_without_a_manifest_nothing_of_a_failed_load_is_kept(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, Shape())
    order = order_of(tmp_path)
    (tmp_path / LAST).write_bytes(b"other")
    weights = Weights(PeerHub(lambda _: None))

    with pytest.raises(ButterflyError):
        load(weights, order)

    assert weights.as_torch() == {}
    assert weights.part_digests == {}
