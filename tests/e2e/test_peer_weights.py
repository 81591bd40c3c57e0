"""Weights from other nodes, with real nodes: what members hold is not asked of S3 again."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly_weights.manifest import MANIFEST_NAME, encode_manifest
from butterfly_weights.proving import create_manifest
from butterfly_weights.source import open_source
from tests.support.local_cluster import LocalCluster, local_cluster
from tests.support.s3 import CountingProxy, counting_proxy, credentials_environment, rclone_s3
from tests.support.weight_worlds import (
    PLACE,
    World,
    bytes_from_cache,
    bytes_from_peers,
    bytes_from_source,
    cached_files,
    greedy_answer,
    make_world,
    s3_model,
)

pytestmark = pytest.mark.e2e

KEYS = {f"butterflynode{number}": f"butterflysecret{number}" for number in range(3)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def storage(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountingProxy]:
    """The model with a manifest on an S3 server, behind a proxy that counts by access key."""
    source = open_source("filesystem", str(world.tiny.folder))
    manifest = create_manifest(source)
    source.close()
    with rclone_s3(tmp_path_factory.mktemp("s3"), keys=KEYS) as server:
        server.upload(world.tiny.folder, PLACE)
        server.put(f"{PLACE}/{MANIFEST_NAME}", encode_manifest(manifest))
        with counting_proxy(server.url) as proxy:
            yield proxy


def test_a_node_without_any_data_gets_its_weights_from_the_others_and_none_from_s3(
    world: World, storage: CountingProxy, tmp_path: Path
) -> None:
    with local_cluster(
        tmp_path,
        s3_model(storage.url),
        equal=True,
        start=False,
        environments=[credentials_environment(*pair) for pair in KEYS.items()],
        cluster={"quorum_size": 2, "rebalance_after_seconds": 1.0},
    ) as cluster:
        *first, late = cluster.nodes
        for node in first:
            node.start()
        epoch = cluster.wait_until_operational(first)
        _wait_until_all_is_cached(cluster, world)
        for _ in range(2):  # new to the cluster; then wiped
            storage.reset()
            late.start()
            epoch = cluster.wait_until_operational(after_epoch=epoch)

            status = late.status()
            own = world.own_bytes(status["layers"])
            assert (bytes_from_source(status), bytes_from_cache(status)) == (0, 0)
            assert bytes_from_peers(status) == own
            headers = storage.bytes_served(PLACE, suffix=".safetensors", access_key=[*KEYS][2])
            assert headers == world.headers_bytes
            assert greedy_answer(late) == world.answer

            late.kill()
            shutil.rmtree(late.data_dir)
            epoch = cluster.wait_until_operational(first, after_epoch=epoch)


def _wait_until_all_is_cached(cluster: LocalCluster, world: World) -> None:
    """Every byte of the model is in the cache of one of the nodes or the other."""

    def cached() -> bool:
        files = {path.name: path.stat().st_size for n in cluster.nodes for path in cached_files(n)}
        return sum(files.values()) == sum(tensor.nbytes for tensor in world.tensors)

    cluster.wait(cached, "the whole model in the caches")
