"""Real nodes on disks that are really full: a state that says so, never a wrong vote or a trace.

The disk of the coordinator fills, because it has the most to lose: it must stop leading by
itself, while its engine goes on with the layers it holds.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly_cluster.identity import load_or_create
from tests.support.eyes import ask
from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster
from tests.support.small_disk import fill, free, small_disk

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

DISK_BYTES = 4 << 20
MODEL = {"source_type": "embedded", "source_path": "toy-llama"}
BODY = json.dumps(
    {"model": "toy-llama", "prompt": "Now is", "max_tokens": 12, "temperature": 0}
).encode()
FAILED = 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three voters; the first one founds, leads and holds all layers, on a small disk."""
    folder = tmp_path_factory.mktemp("disks")
    with (
        small_disk(folder / "node-0", DISK_BYTES),
        local_cluster(folder, MODEL, start=False, cluster={"quorum_size": 2}) as running,
    ):
        running.nodes[0].settings["node"]["capacity"] = 0.9
        for node in running.nodes[1:]:
            node.settings["node"] |= {"role": "coordinator", "capacity": 0}
        running.start()
        running.wait(lambda: admits(running.nodes[0]), "admission")
        running.wait(lambda: len(voters(running.nodes[0])) == 3, "three voters")
        yield running


def says_disk(node: LocalNode) -> bool:
    """Ask for a fresh status: the no-op it puts into the log is one more write to every disk."""
    reads_fresh(node)
    return any(error["code"] == "disk" for error in node.status().get("errors", []))


def reads_fresh(node: LocalNode) -> bool:
    return node.get("/status?fresh=1")[0] == 200


def admits(node: LocalNode) -> bool:
    return node.get("/readiness")[0] == 200


def voters(node: LocalNode) -> set[str]:
    return {member["node_id"] for member in node.status()["members"] if member["voter"]}


def test_a_full_disk_is_a_state_in_which_a_node_serves_and_has_no_vote(
    cluster: LocalCluster,
) -> None:
    full, second, third = cluster.nodes
    full_id, epoch = full.status()["node_id"], full.status()["epoch"]
    code, expected = ask(full, BODY)
    assert code == 200

    fill(full.data_dir)
    cluster.wait(lambda: says_disk(full), "the problem `disk`")
    cluster.wait(lambda: cluster.coordinator() is not full, "another coordinator")
    assert "No space left on device" in full.errors()
    # Between its own leading and that of the next one it hears no majority, and admits nothing.
    cluster.wait(lambda: full.status()["state"] == "OPERATIONAL", "the next one's majority")
    cluster.wait(lambda: ask(full, BODY) == (200, expected), "an answer of the full node")
    assert full.status()["epoch"] == epoch, "nothing was loaded again"

    third.kill()  # a majority of three is two votes, and only one is left
    cluster.wait(lambda: not admits(full), "no admission without a majority")
    assert {node.get("/status?fresh=1")[0] for node in (full, second)} == {503}
    third.start()
    cluster.wait(lambda: reads_fresh(second), "a majority again")

    restart(cluster, full, while_full=True)
    restart(cluster, full, while_full=False)
    third.kill()
    cluster.wait(lambda: reads_fresh(second), "a majority with the vote of the one that was full")
    third.start()
    cluster.wait(lambda: admits(full), "admission")
    assert full.status()["node_id"] == full_id
    assert ask(full, BODY) == (200, expected)


def restart(cluster: LocalCluster, full: LocalNode, *, while_full: bool) -> None:
    """Alone it ends nothing: the node is the same member, and mute from the start."""
    node_id = full.status()["node_id"]
    full.kill()
    if while_full:
        fill(full.data_dir)
    else:
        free(full.data_dir)
    full.start()
    cluster.wait(lambda: reads_fresh(full), "the member that is back")
    if while_full:
        cluster.wait(lambda: says_disk(full), "the problem `disk` again")
    assert says_disk(full) is while_full
    assert full.status()["node_id"] == node_id
    assert "Traceback" not in full.log


def test_a_disk_that_is_full_before_a_node_joined_ends_it_with_the_file_and_the_advice(
    tmp_path: Path,
) -> None:
    with (
        small_disk(tmp_path / "node-0", DISK_BYTES) as disk,
        local_cluster(tmp_path, MODEL, nodes=1, start=False) as alone,
    ):
        (node,) = alone.nodes
        node.settings["node"]["capacity"] = 0
        ends_for_lack_of_space(node)  # before it has an id

        load_or_create(disk).close()
        ends_for_lack_of_space(node)  # before it has a cluster

        node.start()
        alone.wait(lambda: node.status().get("cluster_id"), "a cluster once there is space")


def ends_for_lack_of_space(node: LocalNode) -> None:
    fill(node.data_dir)
    node.start()
    assert node.process is not None
    assert node.process.wait(60) == FAILED
    free(node.data_dir)
    last = node.log.splitlines()[-1]
    assert last.startswith(f"butterfly-node: cannot write {node.data_dir}/"), node.log
    assert "No space left on device; free space" in last
    assert "Traceback" not in node.log
