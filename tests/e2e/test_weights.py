"""Weights on real S3 servers: each node fetches its own slice once; only proven bytes serve."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from butterfly_weights.manifest import MANIFEST_NAME, encode_manifest
from butterfly_weights.proving import create_manifest
from butterfly_weights.source import open_source
from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster
from tests.support.s3 import (
    CountingProxy,
    S3Server,
    counting_proxy,
    credentials_environment,
    moto_s3,
    rclone_s3,
)
from tests.support.weight_worlds import (
    PLACE,
    Tensor,
    World,
    bytes_from_cache,
    bytes_from_source,
    bytes_of,
    cached_files,
    greedy_answer,
    layer_range,
    make_world,
    s3_model,
    wait_until_cached,
)

pytestmark = pytest.mark.e2e

KEYS = {f"butterflynode{number}": f"butterflysecret{number}" for number in range(3)}
ALONE = ("butterflyalone", "butterflyalonesecret")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("model"))


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
        s3_model(storage.url),
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

        assert bytes_from_source(status) == own
        assert bytes_from_cache(status) == 0
        assert own <= counted.served(number) <= own * 1.01
    assert greedy_answer(counted.cluster.nodes[0]) == world.answer


def test_a_second_start_reads_no_tensor_from_s3_and_keeps_the_pinned_root(
    world: World, counted: Counted
) -> None:
    cluster = counted.cluster
    before = [node.status() for node in cluster.nodes]
    for node in cluster.nodes:
        wait_until_cached(cluster, node, world.own_bytes(node.status()["layers"]))
    _stop(cluster)
    counted.proxy.reset()

    cluster.start()
    cluster.wait_until_operational()

    after = [node.status() for node in cluster.nodes]
    assert before[0]["merkle_root"]
    assert before[0]["model"]["manifest_root"] is None
    assert {status["merkle_root"] for status in (*before, *after)} == {before[0]["merkle_root"]}
    for number, status in enumerate(after):
        assert bytes_from_source(status) == 0
        assert bytes_from_cache(status) == world.own_bytes(status["layers"])
        assert counted.served(number) == world.headers_bytes  # each shard's header, once
    assert greedy_answer(cluster.nodes[1]) == world.answer


@pytest.fixture(scope="module")
def alone(
    storage: CountingProxy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    """One node that holds the whole model, so that no plan decides what it reads.

    It never scrubs its cache, which may find damage before a load does.
    """
    with local_cluster(
        tmp_path_factory.mktemp("alone"),
        s3_model(storage.url) | {"cache_scrub_bytes_per_second": 0},
        nodes=1,
        environments=[credentials_environment(*ALONE)],
    ) as cluster:
        cluster.wait_until_operational()
        yield cluster


def test_a_flipped_bit_in_a_cache_costs_that_tensor_again_and_nothing_else(
    world: World, storage: CountingProxy, alone: LocalCluster
) -> None:
    broken, whole = world.tensor("model.layers.2.mlp.up_proj.weight"), world.own_bytes("0-5")
    good = bytes_of(world.tiny.folder, broken)
    (node,) = alone.nodes
    root = node.status()["merkle_root"]
    wait_until_cached(alone, node, whole)
    node.kill()
    damaged = _flip_in_cache(node, good)
    storage.reset()

    node.start()
    alone.wait_until_operational()

    status = node.status()
    assert bytes_from_source(status) == broken.nbytes
    assert bytes_from_cache(status) == whole - broken.nbytes
    handed = storage.bytes_served(PLACE, suffix=".safetensors", access_key=ALONE[0])
    assert handed == world.headers_bytes + broken.nbytes
    assert (status["merkle_root"], greedy_answer(node)) == (root, world.answer)
    (told,) = status["events"]
    assert f"node {status['node_id'][:8]}" in told
    assert f"the cached copy of {broken.name} ({damaged.name[:16]}" in told
    alone.wait(lambda: damaged.exists() and damaged.read_bytes() == good, "it is cached again")


def test_without_a_manifest_a_changed_object_is_refused_until_it_is_restored(
    world: World, storage: CountingProxy, alone: LocalCluster
) -> None:
    broken = world.tensor("model.layers.3.mlp.up_proj.weight")
    good, bad = _shard_and_its_flipped_copy(world, broken)
    bucket = S3Server(storage.url, *ALONE)
    (node,) = alone.nodes
    root = node.status()["merkle_root"]
    node.kill()
    bucket.put(f"{PLACE}/{broken.shard}", bad)

    node.start()

    def refused() -> bool:
        _assert_nothing_is_served(node)
        return "that the cluster serves: restore its files" in node.errors()

    alone.wait(refused, "the refusal of the changed model")
    bucket.put(f"{PLACE}/{broken.shard}", good)
    alone.wait_until_operational()
    assert (node.status()["merkle_root"], node.errors()) == (root, "")
    assert greedy_answer(node) == world.answer


def test_a_flipped_bit_on_s3_is_named_and_never_served_until_the_object_is_restored(
    world: World, tmp_path: Path
) -> None:
    broken = world.tensor("model.layers.5.self_attn.q_proj.weight")
    good, bad = _shard_and_its_flipped_copy(world, broken)
    source = open_source("filesystem", str(world.tiny.folder))
    manifest = create_manifest(source)
    source.close()
    with moto_s3() as server:
        server.upload(world.tiny.folder, PLACE)
        server.put(f"{PLACE}/{MANIFEST_NAME}", encode_manifest(manifest))
        server.put(f"{PLACE}/{broken.shard}", bad)
        environments = [credentials_environment()] * 3
        with local_cluster(
            tmp_path, s3_model(server.url), equal=True, environments=environments
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
            assert [greedy_answer(node) for node in cluster.nodes] == [world.answer] * 3


def _shard_and_its_flipped_copy(world: World, tensor: Tensor) -> tuple[bytes, bytes]:
    """A shard's bytes, and the same with one bit of the tensor changed."""
    good = (world.tiny.folder / tensor.shard).read_bytes()
    bad = bytearray(good)
    bad[tensor.start + tensor.nbytes // 2] ^= 0x10
    return good, bytes(bad)


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
    return next(node for node in cluster.nodes if layer in layer_range(node.status()["layers"]))


def _stop(cluster: LocalCluster) -> None:
    """SIGTERM to all, then wait for all."""
    for node in cluster.nodes:
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
    for node in cluster.nodes:
        assert node.process is not None
        assert node.process.wait(120) == 0, node.log[-2000:]


def _flip_in_cache(node: LocalNode, content: bytes) -> Path:
    """Change one bit of the cached file with this content; which file."""
    path = next(path for path in cached_files(node) if path.read_bytes() == content)
    changed = bytearray(content)
    changed[len(changed) // 3] ^= 1
    path.write_bytes(changed)
    return path
