"""Weights on real S3 servers: each node fetches its own slice once; only proven bytes serve."""

import json
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from butterfly_core.layers import LayerRange, part_of_tensor, stage_parts
from butterfly_weights.manifest import encode_manifest
from butterfly_weights.proving import create_manifest
from butterfly_weights.source import open_source
from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster
from tests.support.s3 import (
    CountingProxy,
    counting_proxy,
    credentials_environment,
    moto_s3,
    rclone_s3,
)
from tests.support.tiny_models import (
    TinyModel,
    make_tiny_model,
    reference_greedy,
    reference_model,
)

pytestmark = pytest.mark.e2e

PLACE = "models/tiny"
KEYS = {f"butterflynode{number}": f"butterflysecret{number}" for number in range(3)}
ALONE = ("butterflyalone", "butterflyalonesecret")
PROMPT = [256, *b"The quick brown fox"]
TOKENS = 12
MANIFEST = "butterfly.manifest.json"


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies in its shard; ``start`` counts from the shard's first byte."""

    name: str
    shard: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class World:
    """A tiny model whose tensors are large against its headers, and what it must answer."""

    tiny: TinyModel
    tensors: Sequence[Tensor]
    headers_bytes: int
    answer: str

    def own_bytes(self, layers: str) -> int:
        """Bytes of the tensors of a stage, by what ``/status`` calls its layers."""
        parts = stage_parts(_layer_range(layers), self.tiny.layer_count, tied=self.tiny.tied)
        return sum(tensor.nbytes for tensor in self.tensors if part_of_tensor(tensor.name) in parts)

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    tiny = make_tiny_model(
        tmp_path_factory.mktemp("model"),
        layers=6,
        tokenizer=True,
        shard_bytes_max=2_000_000,
        hidden_size=256,
        intermediate_size=512,
        head_dim=64,
    )
    tensors, headers_bytes = _read_layout(tiny.folder)
    ids = reference_greedy(reference_model(tiny), PROMPT, TOKENS)
    text = Tokenizer.from_file(str(tiny.folder / "tokenizer.json")).decode(ids)
    return World(tiny, tensors, headers_bytes, text)


@dataclass(frozen=True)
class Counted:
    """Three nodes on one S3 server, each with an access key of its own."""

    cluster: LocalCluster
    proxy: CountingProxy

    def served(self, number: int) -> int:
        """Bytes of shards that node ``number`` was handed since the last reset."""
        key = f"butterflynode{number}"
        return self.proxy.bytes_served(PLACE, suffix=".safetensors", access_key=key)


@pytest.fixture(scope="module")
def storage(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingProxy]:
    """The model on an S3 server that checks signatures, behind a proxy that counts."""
    root = tmp_path_factory.mktemp("s3")
    with rclone_s3(root, keys={**KEYS, ALONE[0]: ALONE[1]}) as server:
        server.upload(world.tiny.folder, PLACE)
        with counting_proxy(server.url) as proxy:
            yield proxy


@pytest.fixture(scope="module")
def counted(storage: CountingProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Counted]:
    with local_cluster(
        tmp_path_factory.mktemp("counted"),
        _s3_model(storage.url),
        equal=True,
        environments=[credentials_environment(*pair) for pair in KEYS.items()],
    ) as cluster:
        cluster.wait_until_operational()
        yield Counted(cluster, storage)


def test_each_node_is_handed_its_own_tensors_and_one_percent_at_most(
    world: World, counted: Counted
) -> None:
    for number, node in enumerate(counted.cluster.nodes):
        status = node.status()
        own = world.own_bytes(status["layers"])

        assert _from_source(status) == own
        assert _from_cache(status) == 0
        assert own <= counted.served(number) <= own * 1.01
    assert _answer(counted.cluster.nodes[0]) == world.answer


def test_a_second_start_reads_no_tensor_from_s3_and_keeps_the_pinned_root(
    world: World, counted: Counted
) -> None:
    cluster = counted.cluster
    before = [node.status() for node in cluster.nodes]
    for node in cluster.nodes:
        _wait_until_cached(cluster, node, world.own_bytes(node.status()["layers"]))
    _stop(cluster)
    counted.proxy.reset()

    cluster.start()
    cluster.wait_until_operational()

    after = [node.status() for node in cluster.nodes]
    assert before[0]["merkle_root"]
    assert before[0]["model"]["manifest_root"] is None
    assert {status["merkle_root"] for status in (*before, *after)} == {before[0]["merkle_root"]}
    for number, status in enumerate(after):
        assert _from_source(status) == 0
        assert _from_cache(status) == world.own_bytes(status["layers"])
        assert counted.served(number) == world.headers_bytes  # each shard's header, once
    assert _answer(cluster.nodes[1]) == world.answer


def test_a_flipped_bit_in_a_cache_costs_that_tensor_again_and_nothing_else(
    world: World, storage: CountingProxy, tmp_path: Path
) -> None:
    broken = world.tensor("model.layers.2.mlp.up_proj.weight")
    good = _bytes_of(world.tiny.folder / broken.shard, broken)
    whole = world.own_bytes("0-5")
    environments = [credentials_environment(*ALONE)]
    with local_cluster(
        tmp_path, _s3_model(storage.url), nodes=1, environments=environments
    ) as cluster:
        (node,) = cluster.nodes
        cluster.wait_until_operational()
        root = node.status()["merkle_root"]
        _wait_until_cached(cluster, node, whole)
        node.kill()
        damaged = _flip_in_cache(node, good)
        storage.reset()

        node.start()
        cluster.wait_until_operational()

        status = node.status()
        assert _from_source(status) == broken.nbytes
        assert _from_cache(status) == whole - broken.nbytes
        handed = storage.bytes_served(PLACE, suffix=".safetensors", access_key=ALONE[0])
        assert handed == world.headers_bytes + broken.nbytes
        assert (status["merkle_root"], _answer(node)) == (root, world.answer)
        engine_log = (node.data_dir / "engine.log").read_text()
        assert f"the cached copy of {broken.name} ({damaged.name[:16]}" in engine_log
        cluster.wait(
            lambda: damaged.exists() and damaged.read_bytes() == good, "it is cached again"
        )


def test_a_flipped_bit_on_s3_is_named_and_never_served_until_the_object_is_restored(
    world: World, tmp_path: Path
) -> None:
    broken = world.tensor("model.layers.5.self_attn.q_proj.weight")
    good = (world.tiny.folder / broken.shard).read_bytes()
    bad = bytearray(good)
    bad[broken.start + broken.nbytes // 2] ^= 0x10
    source = open_source("filesystem", str(world.tiny.folder))
    manifest = create_manifest(source)
    source.close()
    with moto_s3() as server:
        server.upload(world.tiny.folder, PLACE)
        server.put(f"{PLACE}/{MANIFEST}", encode_manifest(manifest))
        server.put(f"{PLACE}/{broken.shard}", bytes(bad))
        environments = [credentials_environment()] * 3
        with local_cluster(
            tmp_path, _s3_model(server.url), equal=True, environments=environments
        ) as cluster:
            told = _wait_for_errors_while_nothing_is_served(cluster, broken, fetches=2)
            server.put(f"{PLACE}/{broken.shard}", good)
            cluster.wait_until_operational()

            holder = _holder_of(cluster, layer=5)
            assert {error["node_id"] for error in told} == {holder.status()["node_id"]}
            for words in (
                f"node {told[0]['node_id'][:8]}",
                broken.name,
                broken.shard,
                "restore it",
            ):
                assert words in told[0]["message"]
            cluster.wait(lambda: not any(n.errors() for n in cluster.nodes), "no errors")
            assert {n.status()["merkle_root"] for n in cluster.nodes} == {manifest.root}
            assert [_answer(node) for node in cluster.nodes] == [world.answer] * 3


def _wait_for_errors_while_nothing_is_served(
    cluster: LocalCluster, broken: Tensor, *, fetches: int
) -> list[dict[str, Any]]:
    """Until one node gave up on the tensor ``fetches`` times and every node tells it."""
    told: list[dict[str, Any]] = []

    def all_tell() -> bool:
        for node in cluster.nodes:
            _assert_nothing_is_served(node)
        seen = [_errors_about(node, broken) for node in cluster.nodes]
        told[:] = [error for errors in seen for error in errors]
        return all(seen) and sum(_times_given_up(node) for node in cluster.nodes) >= fetches

    cluster.wait(all_tell, "the error on every node")
    return told


def _errors_about(node: LocalNode, tensor: Tensor) -> list[dict[str, Any]]:
    errors = node.status().get("errors", [])
    return [e for e in errors if (e["file"], e["tensor"]) == (tensor.shard, tensor.name)]


def _times_given_up(node: LocalNode) -> int:
    return node.log.count("cannot load: ")


def _assert_nothing_is_served(node: LocalNode) -> None:
    ready, checks = node.get("/readiness")
    if not ready:
        return  # it does not listen yet
    answered, body = node.post("/v1/completions", {"model": "tiny", "prompt": "x"})
    assert (ready, answered) == (503, 503), (checks, body)


def _holder_of(cluster: LocalCluster, *, layer: int) -> LocalNode:
    return next(node for node in cluster.nodes if layer in _layer_range(node.status()["layers"]))


def _s3_model(url: str) -> dict[str, Any]:
    return {
        "source_type": "s3",
        "source_path": f"s3://{PLACE}",
        "endpoint_url": url,
        "name": "tiny",
    }


def _layer_range(layers: str) -> LayerRange:
    first, _, last = layers.partition("-")
    return LayerRange(int(first), int(last or first) + 1)


def _own_member(status: dict[str, Any]) -> dict[str, Any]:
    return next(m for m in status["members"] if m["node_id"] == status["node_id"])


def _from_source(status: dict[str, Any]) -> int:
    return int(_own_member(status)["bytes_from_source"])


def _from_cache(status: dict[str, Any]) -> int:
    return int(_own_member(status)["bytes_from_cache"])


def _answer(node: LocalNode) -> str:
    body = {
        "model": "tiny",
        "prompt": PROMPT,
        "max_tokens": TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    code, answer = node.post("/v1/completions", body)
    assert code == 200, answer
    return str(answer["choices"][0]["text"])


def _stop(cluster: LocalCluster) -> None:
    """SIGTERM to all, then wait for all."""
    for node in cluster.nodes:
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
    for node in cluster.nodes:
        assert node.process is not None
        assert node.process.wait(120) == 0, node.log[-2000:]


def _cached_files(node: LocalNode) -> list[Path]:
    return [path for path in node.data_dir.glob("cache/tensors/??/*") if path.suffix != ".part"]


def _wait_until_cached(cluster: LocalCluster, node: LocalNode, nbytes: int) -> None:
    """The cache is written behind; and a pin is written after its tensor."""

    def cached() -> bool:
        files = _cached_files(node)
        pins = [p.read_text().count("\n") for p in node.data_dir.glob("cache/revisions/*")]
        return sum(path.stat().st_size for path in files) >= nbytes and sum(pins) >= len(files)

    cluster.wait(cached, f"{nbytes} bytes in the cache of {node.name}")


def _flip_in_cache(node: LocalNode, content: bytes) -> Path:
    """Change one bit of the cached file with this content; which file."""
    path = next(path for path in _cached_files(node) if path.read_bytes() == content)
    changed = bytearray(content)
    changed[len(changed) // 3] ^= 1
    path.write_bytes(changed)
    return path


def _read_layout(folder: Path) -> tuple[list[Tensor], int]:
    """All tensors of a checkpoint, and the bytes of all headers."""
    tensors, headers_bytes = [], 0
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        first = 8 + int.from_bytes(content[:8], "little")
        headers_bytes += first
        for name, entry in json.loads(content[8:first]).items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                tensors.append(Tensor(name, path.name, first + start, stop - start))
    return tensors, headers_bytes


def _bytes_of(path: Path, tensor: Tensor) -> bytes:
    return path.read_bytes()[tensor.start : tensor.start + tensor.nbytes]
