"""Weights from other nodes: loaders with real data links between them and a real source."""

import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from butterfly_core.layers import all_parts
from butterfly_weights.cache import TensorCache
from butterfly_weights.loader import LoadResult
from butterfly_weights.merkle import LEAF_BYTES
from butterfly_weights.peer_choice import Holding
from butterfly_weights.peers import Answer, WantedLeaf
from butterfly_weights.proving import create_manifest, write_manifest
from butterfly_weights.source import open_source
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.peer_worlds import (
    Outcome,
    Resident,
    Town,
    always,
    answering_with,
    bucket,
    folder_source,
    load_together,
)
from tests.support.s3 import counting_proxy, rclone_s3

PARTS = all_parts(4)
SHAPE = Shape(hidden_size=512, intermediate_size=2048, vocab_size=6000, heads=8, kv_heads=4)


@dataclass(frozen=True)
class Model:
    """30 MB with a manifest; the embedding and the head are of two leaves each."""

    folder: Path
    tensors: Mapping[str, bytes]

    @property
    def nbytes(self) -> int:
        return sum(len(data) for data in self.tensors.values())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model") / "proven"
    tensors = write_checkpoint(folder, SHAPE)
    with closing(open_source("filesystem", str(folder))) as source:
        write_manifest(source, create_manifest(source))
    return Model(folder, tensors)


@pytest.fixture
def town() -> Town:
    return Town()


@pytest.fixture
def holder(town: Town, model: Model) -> tuple[Resident, LoadResult]:
    """Somebody who holds the whole model in memory."""
    resident = Resident(town, "holder")
    return resident, load(resident, model)


def load(resident: Resident, model: Model, cache: TensorCache | None = None) -> LoadResult:
    """A load that ends with every byte right."""
    with closing(folder_source(model.folder)()) as source:
        result = resident.load(source, PARTS, cache=cache)
    assert_right(result, model)
    return result


def assert_right(result: LoadResult, model: Model) -> None:
    assert {name: bytes(tensor.data) for name, tensor in result.tensors.items()} == model.tensors


def results_of(outcomes: list[Outcome], model: Model) -> list[LoadResult]:
    """All ended, and all proven."""
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    results = [outcome.result for outcome in outcomes if outcome.result]
    for result in results:
        assert_right(result, model)
    return results


def test_ten_that_start_together_fetch_each_byte_from_s3_about_once(
    tmp_path: Path, model: Model
) -> None:
    town = Town(meeting=threading.Barrier(10))
    residents = [Resident(town, f"node{n}", patience_seconds=120) for n in range(10)]
    with rclone_s3(tmp_path / "buckets") as server:
        server.upload(model.folder, "models/proven")
        with counting_proxy(server.url) as proxy:
            outcomes = load_together(residents, bucket(proxy.url, "models/proven"), PARTS)
            served = proxy.bytes_served("models/proven", suffix=".safetensors")

    results = results_of(outcomes, model)
    assert model.nbytes <= sum(r.bytes_from_source for r in results) <= 1.1 * model.nbytes
    assert served <= 1.1 * model.nbytes + 10 * 3 * 8192  # each reads the three headers
    assert sum(r.bytes_from_peers for r in results) >= 8.9 * model.nbytes
    assert [r.events for r in results] == [()] * 10


def test_what_somebody_holds_in_memory_is_not_asked_of_the_source(
    town: Town, model: Model, holder: tuple[Resident, LoadResult]
) -> None:
    result = load(Resident(town, "new"), model)

    assert (result.bytes_from_source, result.bytes_from_peers) == (0, model.nbytes)
    assert result.part_digests == holder[1].part_digests


def test_what_nobody_keeps_any_more_comes_from_the_cache_of_the_other(
    tmp_path: Path, town: Town, model: Model
) -> None:
    cache = TensorCache(tmp_path / "cache")
    with closing(cache):
        other = Resident(town, "other")
        load(other, model, cache)  # and the memory is let go
        assert cache.flush(30)

        result = load(Resident(town, "new"), model)

    assert (result.bytes_from_source, result.bytes_from_peers) == (0, model.nbytes)


def test_a_damaged_cache_makes_no_liar_of_its_node(
    tmp_path: Path, town: Town, model: Model
) -> None:
    cache = TensorCache(tmp_path / "cache")
    with closing(cache):
        load(Resident(town, "other"), model, cache)
        assert cache.flush(30)
        victim = max((tmp_path / "cache" / "tensors").glob("??/*"), key=lambda p: p.stat().st_size)
        content = bytearray(victim.read_bytes())
        content[LEAF_BYTES + 5] ^= 1
        victim.write_bytes(content)

        result = load(Resident(town, "new"), model)

    assert 0 < result.bytes_from_source < LEAF_BYTES
    assert result.bytes_from_source + result.bytes_from_peers == model.nbytes
    assert result.events == ()


def test_without_a_manifest_the_source_alone_is_asked(tmp_path: Path, town: Town) -> None:
    tensors = write_checkpoint(tmp_path / "model", Shape())
    model = Model(tmp_path / "model", tensors)
    first = Resident(town, "first")
    kept = load(first, model)

    result = load(Resident(town, "second"), model)

    assert (kept.bytes_from_peers, result.bytes_from_peers) == (0, 0)
    assert first.uploads.given_bytes == 0


def lying(wanted: WantedLeaf, data: bytes) -> bytes | None:
    return bytes([data[0] ^ 1]) + data[1:]


def too_short(wanted: WantedLeaf, data: bytes) -> bytes | None:
    return data[:-1]


def dying(wanted: WantedLeaf, data: bytes) -> bytes | None:
    raise ConnectionError


def stalling(wanted: WantedLeaf, data: bytes) -> bytes | None:
    return None


@pytest.mark.parametrize(
    ("twist", "story"),
    [
        (lying, "wrong leaf"),
        (too_short, "wrong leaf"),
        (dying, "the peer is gone"),
        (stalling, "timed out"),
    ],
)
def test_a_peer_that_lies_dies_or_stalls_is_cut_off_and_the_load_ends_proven(
    town: Town,
    model: Model,
    holder: tuple[Resident, LoadResult],
    twist: Callable[[WantedLeaf, bytes], bytes | None],
    story: str,
) -> None:
    given: list[WantedLeaf] = []

    def answer(wanted: WantedLeaf) -> bytes | None:
        data = holder[0].shelf.leaf(wanted)
        assert data is not None
        given.append(wanted)
        return bytes(data) if len(given) <= 3 else twist(wanted, bytes(data))

    town.answering["evil"] = answering_with(answer, lambda _: Holding.HELD)

    result = load(Resident(town, "new"), model)

    assert len(given) == 4
    assert result.bytes_from_source == 0  # the honest holder gave the rest
    (event,) = result.events
    assert event.startswith("peer evil gives no weights any more")
    assert story in event
    if twist is lying:
        name = next(
            name for name, entry in create_digests(model).items() if entry == given[3].tensor
        )
        assert f"leaf {given[3].index} of tensor {name}" in event
        assert given[3].leaf.hex() in event


def create_digests(model: Model) -> Mapping[str, bytes]:
    with closing(folder_source(model.folder)()) as source:
        return {n: entry.digest for n, entry in create_manifest(source).tensors.items()}


@pytest.mark.parametrize("twist", [lying, dying, stalling])
def test_without_another_holder_the_source_brings_the_rest(
    town: Town, model: Model, twist: Callable[[WantedLeaf, bytes], bytes | None]
) -> None:
    def answer(wanted: WantedLeaf) -> bytes | None:
        return twist(wanted, b"x")

    town.answering["evil"] = answering_with(answer, lambda _: Holding.HELD)

    result = load(Resident(town, "new"), model)

    assert (result.bytes_from_source, result.bytes_from_peers) == (model.nbytes, 0)


@pytest.mark.parametrize(
    ("answer", "holding"),
    [
        (Answer.BUSY, Holding.HELD),
        (Answer.NOT_HERE, Holding.HELD),
        (Answer.NOT_YET, Holding.LOADING),
        (Answer.NOT_HERE, Holding.LOADING),
    ],
)
def test_who_only_promises_is_not_waited_for_for_long(
    town: Town, model: Model, answer: Answer, holding: Holding
) -> None:
    town.answering["tease"] = always(answer, holding)

    result = load(Resident(town, "new"), model)

    assert (result.bytes_from_source, result.bytes_from_peers) == (model.nbytes, 0)


def test_a_loader_that_dies_in_mid_load_leaves_the_others_whole(
    tmp_path: Path, model: Model
) -> None:
    town = Town(meeting=threading.Barrier(3))
    residents = [Resident(town, f"node{number}") for number in range(3)]
    town.answering["doomed"] = always(Answer.NOT_YET, Holding.LOADING, times=3)

    results = results_of(load_together(residents, folder_source(model.folder), PARTS), model)

    assert sum(r.bytes_from_source for r in results) <= 3 * model.nbytes
    assert any(r.bytes_from_peers for r in results)
