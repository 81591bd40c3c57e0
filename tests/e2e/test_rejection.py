"""Without a manifest, nodes whose weights differ never serve, and heal when the files do."""

import shutil
from pathlib import Path

import pytest

from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster
from tests.support.tiny_models import make_tiny_model, read_tensors

pytestmark = pytest.mark.e2e


def flip_a_bit_of_the_embedding(folder: Path) -> Path:
    """Which shard was changed; the bit lies in the first tensor named embed_tokens."""
    needle = read_tensors(folder)["model.embed_tokens.weight"].numpy().tobytes()[:64]
    for shard in sorted(folder.glob("*.safetensors")):
        content = bytearray(shard.read_bytes())
        at = content.find(needle)
        if at >= 0:
            content[at] ^= 1
            shard.write_bytes(content)
            return shard
    raise AssertionError("no shard holds the embedding")


def rejected(cluster: LocalCluster) -> set[str]:
    return {
        str(error["node_id"])
        for error in cluster.nodes[0].status().get("errors", [])
        if error["code"] == "digests_rejected"
    }


def answers_nothing(node: LocalNode) -> bool:
    return node.post("/v1/completions", {"model": "tiny", "prompt": "x"})[0] == 503


def test_copies_that_differ_are_rejected_by_name_and_heal_when_restored(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    make_tiny_model(good, tied=True, tokenizer=True)
    shutil.copytree(good, bad)
    changed = flip_a_bit_of_the_embedding(bad)
    model = {"source_type": "filesystem", "source_path": str(good), "name": "tiny"}

    with local_cluster(tmp_path / "cluster", model, nodes=2, start=False) as cluster:
        cluster.nodes[1].settings["model"]["source_path"] = str(bad)
        cluster.start()
        cluster.wait(lambda: rejected(cluster), "a rejection that names a node")

        assert all(answers_nothing(node) for node in cluster.nodes)
        assert "embed" in cluster.nodes[0].errors()
        assert all(node.status()["state"] == "LOADING" for node in cluster.nodes)

        shutil.copy(good / changed.name, changed)
        cluster.wait_until_operational()
        assert cluster.nodes[0].status()["errors"] == []
