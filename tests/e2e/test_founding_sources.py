"""Real nodes that find each other by DNS and by multicast, and two clusters that meet.

The nodes carry no layers, so they have no engine process and cost little. Consul has a file of
its own.
"""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.dns_server import DnsServer, dns_server, srv
from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster
from tests.support.namespaces import switched_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

MODEL = {"source_type": "embedded", "source_path": "toy-llama"}
NAME = "_butterfly._tcp.example.com"
FOUNDERS = 3
BARE = {"role": "coordinator", "capacity": 0.0}


@contextmanager
def nodes_by_dns(server: DnsServer, folder: Path, *, nodes: int) -> Iterator[LocalCluster]:
    """Nodes that know a name, and nobody; none is started."""
    cluster = {
        "discovery_method": "dns",
        "seed_nodes": [],
        "quorum_size": 2,
        "founding_grace_seconds": 1.0,
    }
    discovery = {"dns_name": NAME, "dns_servers": [str(server.address)]}
    with local_cluster(
        folder, MODEL, nodes=nodes, start=False, cluster=cluster, node=BARE, discovery=discovery
    ) as made:
        yield made


def records(nodes: Sequence[LocalNode]) -> list[str]:
    return [srv(NAME, "127.0.0.1", int(node.peer.rpartition(":")[2])) for node in nodes]


def sizes(nodes: Sequence[LocalNode]) -> set[int]:
    return {node.status().get("cluster_size", 0) for node in nodes}


def ids(nodes: Sequence[LocalNode]) -> set[str | None]:
    return {node.status().get("cluster_id") for node in nodes}


def test_nodes_named_by_dns_found_a_cluster_that_does_not_need_dns_any_more(
    tmp_path: Path,
) -> None:
    with dns_server() as server, nodes_by_dns(server, tmp_path, nodes=4) as cluster:
        founders, late = cluster.nodes[:FOUNDERS], cluster.nodes[FOUNDERS]
        server.serve(*records(founders), ttl_seconds=1)
        for node in founders:
            node.start()
        cluster.wait(lambda: sizes(founders) == {FOUNDERS}, "three members")
        (cluster_id,) = ids(founders)

        late.start()
        cluster.wait(lambda: sizes(cluster.nodes) == {FOUNDERS + 1}, "the node that came later")
        server.stop()
        cluster.wait(lambda: "discovery" in codes(founders[0]), "the problem of the source")
        founders[1].kill()
        founders[1].start()
        cluster.wait(lambda: sizes(cluster.nodes) == {FOUNDERS + 1}, "all, one restarted")

        assert ids(cluster.nodes) == {cluster_id}
        assert "goes on" in cluster.nodes[0].errors()


def codes(node: LocalNode) -> set[str]:
    return {error["code"] for error in node.status().get("errors", [])}


def test_nodes_that_are_shown_different_lists_do_not_found_until_the_lists_agree(
    tmp_path: Path,
) -> None:
    with (
        dns_server() as one_view,
        dns_server() as other_view,
        nodes_by_dns(one_view, tmp_path, nodes=3) as cluster,
    ):
        first, second, third = cluster.nodes
        third.settings["discovery"] = {
            **third.settings["discovery"],
            "dns_servers": [str(other_view.address)],
        }
        one_view.serve(*records([first, second, third]), ttl_seconds=1)
        other_view.serve(*records([second, third]), ttl_seconds=1)
        cluster.start()
        cluster.wait(
            lambda: any("do not agree" in node.errors() for node in cluster.nodes),
            "a node that names both lists",
        )
        assert ids(cluster.nodes) == {None}

        other_view.serve(*records([first, second, third]), ttl_seconds=1)
        cluster.wait(lambda: sizes(cluster.nodes) == {3}, "one cluster of the three")


def test_hosts_of_a_lan_find_each_other_by_multicast(tmp_path: Path) -> None:
    sections: dict[str, dict[str, Any]] = {
        "cluster": {
            "discovery_method": "multicast",
            "seed_nodes": [],
            "quorum_size": 2,
            "founding_grace_seconds": 1.0,
        },
        "node": BARE,
        "discovery": {"multicast_interface": "lan"},
    }
    with switched_cluster(tmp_path, MODEL, nodes=3, **sections) as (cluster, _):
        cluster.start()
        cluster.wait(lambda: sizes(cluster.nodes) == {3}, "three members")

        assert len(ids(cluster.nodes)) == 1
        heard = cluster.nodes[0].status()["discovery"]["addresses"]
        assert sorted(heard) == sorted(node.peer for node in cluster.nodes)


def test_two_clusters_of_one_name_stay_apart_and_both_tell_of_the_other(tmp_path: Path) -> None:
    with local_cluster(tmp_path, MODEL, nodes=2, start=False, node=BARE) as cluster:
        one, other = cluster.nodes
        for node in cluster.nodes:
            node.settings["cluster"] = {"cluster_name": "test", "seed_nodes": []}
        cluster.start()
        cluster.wait(lambda: sizes(cluster.nodes) == {1}, "two clusters of one")
        (mine,), (theirs,) = ids([one]), ids([other])
        assert mine != theirs

        one.kill()
        one.settings["cluster"]["seed_nodes"] = [one.peer, other.peer]
        one.start()
        cluster.wait(lambda: "two_clusters" in codes(one), "that there is another cluster")
        cluster.wait(lambda: "two_clusters" in codes(other), "that the other one knows it too")

        assert f"this node's is {theirs}" in other.errors()
        assert f"{mine} (at {one.peer})" in other.errors()
        assert str(mine) in one.errors()
        assert f"{theirs} (at {other.peer})" in one.errors()
        assert ids([one]) == {mine}
        told = diagnose(one)
        assert f"cluster {mine}" in told
        assert f"cluster {theirs}" in told


def diagnose(node: LocalNode) -> str:
    command = ["-m", "butterfly.admin.main", "diagnose", "--config", str(node.config_path)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout
