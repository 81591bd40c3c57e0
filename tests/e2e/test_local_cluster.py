"""The harness itself: a node that ends is told at once, and nothing is left running."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.local_cluster import LeftBehind, LocalNode, NotInTime, local_cluster

pytestmark = pytest.mark.e2e

MODEL = {"source_type": "embedded", "source_path": "toy-llama"}


def test_a_node_that_ends_by_itself_is_not_waited_for(tmp_path: Path) -> None:
    misspelt = {"quorum_sise": 1}
    with (
        local_cluster(tmp_path, MODEL, nodes=1, cluster=misspelt) as cluster,
        pytest.raises(NotInTime, match="ended"),
    ):
        cluster.wait(lambda: False, "never")


def test_an_engine_ends_with_its_killed_node(tmp_path: Path) -> None:
    with local_cluster(tmp_path, MODEL, nodes=1, cold=True) as cluster:
        node = cluster.nodes[0]
        cluster.wait(lambda: node.engines(), "an engine")
        assert node.engines() == [node.engine_pid()]
        node.kill()

    assert node.engines() == []


def test_an_engine_that_stays_behind_fails_the_test_that_left_it(tmp_path: Path) -> None:
    with local_cluster(tmp_path, MODEL, nodes=1, start=False) as cluster:
        orphan = start_what_looks_like_an_engine(cluster.nodes[0])
        cluster.wait(lambda: cluster.nodes[0].engines(), "the orphan")

        with pytest.raises(LeftBehind):
            cluster.stop()
    orphan.wait()


def start_what_looks_like_an_engine(node: LocalNode) -> subprocess.Popen[bytes]:
    node.data_dir.mkdir(exist_ok=True, mode=0o700)
    sleeping = [sys.executable, "-c", "import time; time.sleep(60)", "butterfly.engine_host"]
    with (node.data_dir / "engine.log").open("ab") as sink:
        return subprocess.Popen(sleeping, stdout=sink, stderr=sink)
