"""A model of a hub, served by real nodes that find its branch at different commits."""

import shutil
from pathlib import Path

import pytest

from tests.support.hub_server import REPO, hub_server
from tests.support.local_cluster import local_cluster
from tests.support.weight_worlds import bytes_from_source, greedy_answer, make_world

pytestmark = pytest.mark.e2e


def test_nodes_that_see_a_branch_move_all_read_the_commit_that_was_agreed_on(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path / "model")
    newer = tmp_path / "newer"
    shutil.copytree(world.tiny.folder, newer)
    (newer / "generation_config.json").write_text('{"temperature": 0.5}')
    with hub_server(world.tiny.folder) as hub:
        hub.looks = [hub.revisions["main"], hub.commit(newer)]
        model = {
            "source_type": "huggingface",
            "source_path": f"{REPO}@main",
            "endpoint_url": hub.url,
            "cache": "off",
        }
        nobody = {"HF_HOME": str(tmp_path / "nobody"), "NO_PROXY": "127.0.0.1,localhost"}
        with local_cluster(
            tmp_path / "nodes", model, nodes=2, equal=True, environments=[nobody, nobody]
        ) as cluster:
            cluster.wait_until_operational()
            statuses = [node.status() for node in cluster.nodes]
            answers = [greedy_answer(node) for node in cluster.nodes]

    agreed = {status["model"]["revision"] for status in statuses}
    assert len(agreed) == 1
    assert agreed <= set(hub.commits)
    assert {status["model"]["name"] for status in statuses} == {"tiny"}
    assert answers == [world.answer] * 2
    for status in statuses:
        assert bytes_from_source(status) == world.own_bytes(status["layers"])
    (commit,) = agreed
    weights = [r.path for r in hub.requests("hub", "GET", ".safetensors")]
    assert any(commit in path for path in weights)
