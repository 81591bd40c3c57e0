"""Real nodes that find each other at a real Consul, and found one cluster through its claim.

The nodes carry no layers, so they have no engine process and cost little.
"""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.consul_server import ConsulAgent, consul_agent
from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.chaos, pytest.mark.light]

MODEL = {"source_type": "embedded", "source_path": "toy-llama"}
FOUNDERS = 3
GRACE_SECONDS = 3.0
CLAIM = "kv/butterfly/test/founding"
NOBODY = "ab" * 16


@contextmanager
def nodes_at(consul: ConsulAgent, folder: Path, *, nodes: int) -> Iterator[LocalCluster]:
    """Nodes that know of Consul and of nobody else; none is started."""
    discovery: dict[str, Any] = {
        "consul_url": consul.url,
        "consul_token_file": str(consul.token_file),
    }
    if consul.tls:
        discovery |= {
            "consul_ca_file": str(consul.tls_file("ca.pem")),
            "consul_certificate_file": str(consul.tls_file("node.pem")),
            "consul_key_file": str(consul.tls_file("node.key")),
        }
    cluster = {
        "discovery_method": "consul",
        "seed_nodes": [],
        "quorum_size": FOUNDERS,
        "founding_grace_seconds": GRACE_SECONDS,
    }
    bare = {"role": "coordinator", "capacity": 0.0}
    with local_cluster(
        folder, MODEL, nodes=nodes, start=False, cluster=cluster, node=bare, discovery=discovery
    ) as made:
        yield made


def claim(consul: ConsulAgent) -> Any:
    (entry,) = consul.ask("GET", CLAIM)
    return json.loads(base64.b64decode(entry["Value"]))


def write_claim(consul: ConsulAgent, *, cluster_id: str | None) -> None:
    """One by a node that is not there."""
    value = {"cluster_name": "test", "candidate": NOBODY, "cluster_id": cluster_id}
    consul.ask("PUT", CLAIM, json.dumps(value).encode())


def ids(nodes: list[LocalNode]) -> set[str | None]:
    return {node.status().get("cluster_id") for node in nodes}


def sizes(nodes: list[LocalNode]) -> set[int]:
    return {node.status().get("cluster_size", 0) for node in nodes}


def problems(node: LocalNode) -> str:
    return str(node.status().get("discovery", {}).get("problem"))


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_nodes_found_one_cluster_that_does_not_need_consul_any_more(
    tmp_path: Path, tls: bool
) -> None:
    (tmp_path / "consul").mkdir()
    with (
        consul_agent(tmp_path / "consul", tls=tls) as consul,
        nodes_at(consul, tmp_path / "nodes", nodes=FOUNDERS + 1) as cluster,
    ):
        *founders, late = cluster.nodes
        for node in founders:
            node.start()
        cluster.wait(lambda: sizes(founders) == {FOUNDERS}, "three members at every node")
        (cluster_id,) = ids(founders)
        assert claim(consul)["candidate"] in {node.status()["node_id"] for node in founders}
        cluster.wait(lambda: claim(consul)["cluster_id"] == cluster_id, "the claim names it")

        consul.kill()
        cluster.wait(
            lambda: all("has not answered" in problems(node) for node in founders),
            "every node says that Consul is down",
        )
        old = cluster.coordinator()
        term = old.status()["term"]
        old.kill()
        rest = [node for node in founders if node is not old]
        cluster.wait(
            lambda: (
                all(node.status().get("term", 0) > term for node in rest)
                and sizes(rest) == {FOUNDERS - 1}
            ),
            "the next coordinator, without Consul",
        )
        assert ids(rest) == {cluster_id}

        consul.start()
        late.start()
        cluster.wait(lambda: sizes([*rest, late]) == {FOUNDERS}, "a late one joins")
        assert ids([*rest, late]) == {cluster_id}

        mine = f"butterfly-{late.status()['node_id']}"
        cluster.wait(lambda: mine in consul.ask("GET", "agent/services"), "it registered")
        late.stop()
        assert mine not in consul.ask("GET", "agent/services")
        assert consul.token not in "".join(node.log for node in cluster.nodes)


def test_a_claim_of_a_node_that_is_gone_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "consul").mkdir()
    with (
        consul_agent(tmp_path / "consul") as consul,
        nodes_at(consul, tmp_path / "nodes", nodes=FOUNDERS) as cluster,
    ):
        write_claim(consul, cluster_id=None)
        cluster.start()
        cluster.wait(lambda: sizes(cluster.nodes) == {FOUNDERS}, "three members at every node")

        assert len(ids(cluster.nodes)) == 1
        assert claim(consul)["candidate"] in {node.status()["node_id"] for node in cluster.nodes}


def test_where_the_claim_says_that_a_cluster_exists_nobody_founds_another(
    tmp_path: Path,
) -> None:
    (tmp_path / "consul").mkdir()
    with (
        consul_agent(tmp_path / "consul") as consul,
        nodes_at(consul, tmp_path / "nodes", nodes=FOUNDERS) as cluster,
    ):
        write_claim(consul, cluster_id="cd" * 16)
        before = consul.ask("GET", CLAIM)
        cluster.start()
        peers = [node.peer for node in cluster.nodes]
        cluster.wait(
            lambda: all(
                text in node.errors() for node in cluster.nodes for text in ("cd" * 16, *peers)
            ),
            "every node sees all of them and says which cluster it waits for",
        )
        time.sleep(2 * GRACE_SECONDS)

        assert ids(cluster.nodes) == {None}
        assert consul.ask("GET", CLAIM) == before


def test_anything_else_under_the_key_stops_founding_until_a_person_removed_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "consul").mkdir()
    with (
        consul_agent(tmp_path / "consul") as consul,
        nodes_at(consul, tmp_path / "nodes", nodes=FOUNDERS) as cluster,
    ):
        consul.ask("PUT", CLAIM, b"mine, hands off")
        cluster.start()
        cluster.wait(
            lambda: all(
                "consul kv delete butterfly/test/founding" in node.log for node in cluster.nodes
            ),
            "every node names the key and what to do",
        )
        assert ids(cluster.nodes) == {None}

        consul.ask("DELETE", CLAIM)
        cluster.wait(lambda: sizes(cluster.nodes) == {FOUNDERS}, "three members at every node")
        assert len(ids(cluster.nodes)) == 1
