"""Many real node processes: five vote, the others follow, also when the coordinator dies.

Twelve in CI, where two cores carry them all; thirty with BUTTERFLY_TEST_NODES=30 (`make chaos`).

The nodes carry no layers, so they have no engine process and cost little. What goes over their
connections while nothing happens is counted, in frames and bytes, by the nodes' own metrics.
"""

import os
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from butterfly.node.reports import report_period
from butterfly_cluster.heartbeats import LEARNER_HEARTBEATS
from butterfly_cluster.raft_timing import LAN
from butterfly_wire.limits import WireLimits
from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

NODES = int(os.environ.get("BUTTERFLY_TEST_NODES", "12"))
FOUNDERS = 5
COUNT_SECONDS = 4.0
LOOKS = 5
HEARTBEATS = 1 / LAN.append_seconds
QUIET = 4 / LAN.silent_seconds + 3 / WireLimits().ping_seconds
"""Pings a second between two nodes at most: the log's, and those of its channel and of a control
connection in either direction."""
MODEL = {"source_type": "embedded", "source_path": "toy-llama"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("thirty")
    with local_cluster(folder, MODEL, nodes=NODES, equal=True, start=False) as made:
        seeds = [node.peer for node in made.nodes[:FOUNDERS]]
        for node in made.nodes[FOUNDERS:]:  # their imports, all at once, are not the founders' load
            node.prefix = ("nice",)
        for node in made.nodes:
            node.settings["cluster"] |= {"seed_nodes": seeds, "quorum_size": FOUNDERS}
            node.settings["node"] |= {"role": "coordinator", "capacity": 0.0}
        for node in made.nodes[:FOUNDERS]:
            node.start()
        made.wait(lambda: sizes(made.nodes[:FOUNDERS]) == {FOUNDERS}, "five members")
        yield made


def coordinator_of(nodes: list[LocalNode]) -> LocalNode:
    """As they see it themselves, at rest."""
    leads = nodes[0].status()["coordinator"]
    return next(node for node in nodes if node.status()["node_id"] == leads)


def sizes(nodes: list[LocalNode]) -> set[int]:
    return {node.status().get("cluster_size", 0) for node in nodes}


def voters(node: LocalNode) -> set[str]:
    return {member["node_id"] for member in node.status()["members"] if member["voter"]}


@dataclass(frozen=True)
class Load:
    """Of one node: frames and bytes a second, in either direction."""

    frames_in: float
    frames_out: float
    bytes_in: float
    bytes_out: float


def counted(node: LocalNode) -> tuple[float, dict[str, float]]:
    """When, and what went over the node's connections until then."""
    with urllib.request.urlopen(f"{node.url}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return time.monotonic(), {
        f"{what}_{sample.labels['way']}": sample.value
        for what in ("frames", "bytes")
        for sample in samples
        if sample.name == f"peer_{what}_total"
    }


def load_at_rest(cluster: LocalCluster, nodes: list[LocalNode]) -> dict[str, Load]:
    """By name of the node, counted while nothing was committed and one coordinator led."""
    found: dict[str, Load] = {}

    def looked() -> bool:
        leads, index = nodes[0].status()["coordinator"], nodes[0].status()["commit_index"]
        before = [counted(node) for node in nodes]
        time.sleep(COUNT_SECONDS)
        after = [counted(node) for node in nodes]
        for node, (then, old), (now, new) in zip(nodes, before, after, strict=True):
            found[node.name] = Load(
                **{name: (new[name] - old[name]) / (now - then) for name in new}
            )
        seen = nodes[0].status()
        return bool(seen["coordinator"] == leads and seen["commit_index"] == index)

    cluster.wait(looked, "a while in which nothing is committed")
    return found


def frames_at_the_coordinator_max(members: int) -> float:
    """A second, in either direction: what the timing says."""
    each = QUIET + 1 / report_period(members)
    voters, learners = FOUNDERS - 1, members - FOUNDERS
    return voters * (HEARTBEATS + each) + learners * (HEARTBEATS / LEARNER_HEARTBEATS + each)


def is_cheaper_each(many: Load, few: Load) -> bool:
    """For the coordinator, in all that is counted: of NODES members as against FOUNDERS."""
    each = [
        (getattr(many, what) / (NODES - 1), getattr(few, what) / (FOUNDERS - 1))
        for what in ("frames_in", "frames_out", "bytes_in", "bytes_out")
    ]
    return all(now <= before for now, before in each)


def costs_what_the_timing_says(of: Load, members: int) -> bool:
    bound = frames_at_the_coordinator_max(members)
    return members - 1 < of.frames_in <= bound and members - 1 < of.frames_out <= bound


def test_those_that_join_at_once_follow_five_voters_and_load_the_coordinator_less_each(
    cluster: LocalCluster,
) -> None:
    founders = cluster.nodes[:FOUNDERS]
    load_at_rest(cluster, founders)  # reports that changed still go round for a while
    few = load_at_rest(cluster, founders)[coordinator_of(founders).name]
    assert costs_what_the_timing_says(few, FOUNDERS), few
    for node in cluster.nodes[FOUNDERS:]:
        node.start()
    cluster.wait(lambda: sizes(cluster.nodes) == {NODES}, "all members at every node")

    told = {frozenset(voters(node)) for node in cluster.nodes}
    assert len(told) == 1
    assert len(told.pop()) == FOUNDERS
    assert len({node.status()["cluster_id"] for node in cluster.nodes}) == 1

    for _ in range(LOOKS):  # as above, of all who joined
        loads = load_at_rest(cluster, cluster.nodes)
        leads = cluster.coordinator()
        many = loads[leads.name]
        if is_cheaper_each(many, few):
            break
    assert is_cheaper_each(many, few), (many, few)
    assert costs_what_the_timing_says(many, NODES), many
    followers_max = FOUNDERS * QUIET + HEARTBEATS / LEARNER_HEARTBEATS + 1 / report_period(NODES)
    voting = voters(leads)
    followers = [node for node in cluster.nodes if node.status()["node_id"] not in voting]
    assert max(loads[node.name].frames_in for node in followers) <= followers_max, loads


def test_all_follow_the_next_coordinator_when_it_is_killed(cluster: LocalCluster) -> None:
    old = cluster.coordinator()
    old_id, index = old.status()["node_id"], old.status()["commit_index"]
    rest = [node for node in cluster.nodes if node is not old]

    old.kill()
    cluster.wait(lambda: sizes(rest) == {NODES - 1}, "all others as live members at every node")

    leads = {node.status()["coordinator"] for node in rest}
    assert len(leads) == 1
    assert old_id not in leads
    assert all(node.status()["commit_index"] > index for node in rest)
    old.start()
    cluster.wait(lambda: sizes(cluster.nodes) == {NODES}, "the old coordinator as a member")
    assert old.status()["node_id"] == old_id
