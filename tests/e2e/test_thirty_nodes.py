"""Thirty real node processes: five vote, the others follow, also when the coordinator dies.

The nodes carry no layers, so they have no engine process and cost little. What grows with the
number of members is counted, in bytes and messages.
"""

from collections.abc import Iterator

import pytest

from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

NODES = 30
FOUNDERS = 5
MODEL = {"source_type": "embedded", "source_path": "toy-llama"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("thirty")
    with local_cluster(folder, MODEL, nodes=NODES, equal=True, start=False) as made:
        seeds = [node.peer for node in made.nodes[:FOUNDERS]]
        for node in made.nodes:
            node.settings["cluster"] |= {"seed_nodes": seeds, "quorum_size": FOUNDERS}
            node.settings["node"] |= {"role": "coordinator", "capacity": 0.0}
        for node in made.nodes[:FOUNDERS]:
            node.start()
        made.wait(lambda: sizes(made.nodes[:FOUNDERS]) == {FOUNDERS}, "five members")
        yield made


def sizes(nodes: list[LocalNode]) -> set[int]:
    return {node.status().get("cluster_size", 0) for node in nodes}


def voters(node: LocalNode) -> set[str]:
    return {member["node_id"] for member in node.status()["members"] if member["voter"]}


def test_twenty_five_that_join_at_once_follow_five_voters(cluster: LocalCluster) -> None:
    for node in cluster.nodes[FOUNDERS:]:
        node.start()
    cluster.wait(lambda: sizes(cluster.nodes) == {NODES}, "thirty members at every node")

    told = {frozenset(voters(node)) for node in cluster.nodes}
    assert len(told) == 1
    assert len(told.pop()) == FOUNDERS
    assert len({node.status()["cluster_id"] for node in cluster.nodes}) == 1


def test_all_follow_the_next_coordinator_when_it_is_killed(cluster: LocalCluster) -> None:
    old = cluster.coordinator()
    old_id, index = old.status()["node_id"], old.status()["commit_index"]
    rest = [node for node in cluster.nodes if node is not old]

    old.kill()
    cluster.wait(lambda: sizes(rest) == {NODES - 1}, "twenty-nine live members at every node")

    leads = {node.status()["coordinator"] for node in rest}
    assert len(leads) == 1
    assert old_id not in leads
    assert all(node.status()["commit_index"] > index for node in rest)
    old.start()
    cluster.wait(lambda: sizes(cluster.nodes) == {NODES}, "the old coordinator as a member")
    assert old.status()["node_id"] == old_id
