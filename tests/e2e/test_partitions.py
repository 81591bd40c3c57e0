"""Five real nodes, each a host of its own, while the network between them breaks.

Promises that hold at every moment are looked at all the time, from outside: one cluster, one
coordinator in a term, no epoch that goes back, no wrong token in any answer. The bound on how
long a cut-off node may still admit requests is the lease plus what these looks and a busy
machine add to it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.support.eyes import Clients, Eyes, ask
from tests.support.local_cluster import LocalCluster, LocalNode
from tests.support.namespaces import Host, Switch, switched_cluster
from tests.support.tiny_models import (
    TinyModel,
    make_tiny_model,
    reference_greedy,
    reference_model,
)

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

PROMPT = [256, 72, 101, 108, 108, 111]
TOKENS = 24
ASKED = {
    "model": "tiny",
    "prompt": PROMPT,
    "max_tokens": TOKENS,
    "temperature": 0,
    "ignore_eos": True,
}
BODY = json.dumps(ASKED).encode()
LEASE_SECONDS = 2.0
NOISE_SECONDS = 3.0
NODES = 5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("model"), layers=6, tokenizer=True)


@pytest.fixture(scope="module")
def expected(tiny: TinyModel) -> str:
    from tokenizers import Tokenizer

    ids = reference_greedy(reference_model(tiny), PROMPT, TOKENS)
    text: str = Tokenizer.from_file(str(tiny.folder / "tokenizer.json")).decode(ids)
    return text


@pytest.fixture(scope="module")
def world(
    tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalCluster, Switch]]:
    model = {"source_type": "filesystem", "source_path": str(tiny.folder), "name": "tiny"}
    calm = {"rebalance_after_seconds": 1.0}
    folder = tmp_path_factory.mktemp("switched")
    with switched_cluster(folder, model, nodes=NODES, cluster=calm) as (cluster, switch):
        cluster.start()
        cluster.wait_until_operational()
        yield cluster, switch


@contextmanager
def healed(cluster: LocalCluster, switch: Switch) -> Iterator[None]:
    """Whatever a test cut is whole again for the next one."""
    try:
        yield
    finally:
        switch.heal()
    cluster.wait_until_operational()


def host_of(node: LocalNode, cluster: LocalCluster, switch: Switch) -> Host:
    return switch.hosts[cluster.nodes.index(node)]


def others(cluster: LocalCluster, *without: LocalNode) -> list[LocalNode]:
    return [node for node in cluster.nodes if node not in without]


def knows_all(node: LocalNode) -> bool:
    return node.status().get("cluster_size") == NODES


def all_right(eyes: Eyes, clients: Clients, expected: str) -> None:
    assert eyes.broken_promises() == []
    assert {answer.text for answer in clients.good()} <= {expected}


def test_an_isolated_coordinator_is_replaced_and_admits_nothing(
    world: tuple[LocalCluster, Switch], expected: str
) -> None:
    cluster, switch = world
    old = cluster.coordinator()
    rest = others(cluster, old)
    epoch = old.status()["epoch"]

    with healed(cluster, switch), Eyes(cluster.nodes) as eyes, Clients(rest, ASKED) as clients:
        cut_at = time.monotonic()
        switch.isolate(host_of(old, cluster, switch))
        new_epoch = cluster.wait_until_operational(rest, after_epoch=epoch)
        served_at = time.monotonic()
        cluster.wait(lambda: clients.good(since=served_at), "an answer of the majority")
        code, reason = ask(old, BODY)
        isolated_epoch = old.status()["epoch"]

    assert new_epoch > epoch
    assert isolated_epoch == epoch, "the isolated node obeys committed entries only"
    assert code == 503
    assert "minority" in reason
    assert eyes.last_admitted(old, since=cut_at) <= LEASE_SECONDS + NOISE_SECONDS
    all_right(eyes, clients, expected)


@pytest.mark.parametrize("how", ["deafen", "silence"])
def test_a_coordinator_cut_off_one_way_does_not_hold_the_cluster(
    world: tuple[LocalCluster, Switch], expected: str, how: str
) -> None:
    cluster, switch = world
    old = cluster.coordinator()
    rest = others(cluster, old)
    epoch = old.status()["epoch"]

    with healed(cluster, switch), Eyes(cluster.nodes) as eyes, Clients(rest, ASKED) as clients:
        getattr(switch, how)(host_of(old, cluster, switch))
        cluster.wait_until_operational(rest, after_epoch=epoch)
        served_at = time.monotonic()
        cluster.wait(lambda: clients.good(since=served_at), "an answer of the majority")
        leads = {node.status()["coordinator"] for node in rest}

    assert len(leads) == 1
    assert leads != {old.status()["node_id"]}
    all_right(eyes, clients, expected)


def test_a_minority_refuses_and_the_majority_serves(
    world: tuple[LocalCluster, Switch], expected: str
) -> None:
    cluster, switch = world
    leads = cluster.coordinator()
    minority = others(cluster, leads)[:2]
    majority = others(cluster, *minority)
    epoch = leads.status()["epoch"]

    with healed(cluster, switch), Eyes(cluster.nodes) as eyes, Clients(majority, ASKED) as clients:
        cut_at = time.monotonic()
        for one in minority:
            for other in majority:
                near, far = (host_of(node, cluster, switch) for node in (one, other))
                switch.cut(near, far)
                switch.cut(far, near)
        cluster.wait_until_operational(majority, after_epoch=epoch)
        refused = [ask(node, BODY)[0] for node in minority]

    assert refused == [503, 503]
    for node in minority:
        assert eyes.last_admitted(node, since=cut_at) <= LEASE_SECONDS + NOISE_SECONDS
    all_right(eyes, clients, expected)


def test_a_flapping_link_changes_nobodys_mind_about_what_is_committed(
    world: tuple[LocalCluster, Switch], expected: str
) -> None:
    cluster, switch = world
    flapping = host_of(others(cluster, cluster.coordinator())[0], cluster, switch)

    with (
        healed(cluster, switch),
        Eyes(cluster.nodes) as eyes,
        Clients(cluster.nodes, ASKED) as clients,
    ):
        for _ in range(6):
            switch.isolate(flapping)
            time.sleep(0.7)  # shorter and longer than an election, in turn
            switch.heal()
            time.sleep(0.4)
        cluster.wait_until_operational()

    all_right(eyes, clients, expected)


def test_all_nodes_killed_at_once_are_the_same_cluster_again(
    world: tuple[LocalCluster, Switch], expected: str
) -> None:
    cluster, switch = world
    before = [node.status() for node in cluster.nodes]

    with (
        healed(cluster, switch),
        Eyes(cluster.nodes) as eyes,
        Clients(cluster.nodes, ASKED) as clients,
    ):
        for node in cluster.nodes:
            node.kill()
        cluster.start()
        cluster.wait_until_operational(after_epoch=before[0]["epoch"])
        served_at = time.monotonic()
        cluster.wait(lambda: clients.good(since=served_at), "an answer after the restart")

    after = [node.status() for node in cluster.nodes]
    for key in ("cluster_id", "node_id", "merkle_root"):
        assert [status[key] for status in after] == [status[key] for status in before]
    all_right(eyes, clients, expected)


def test_a_rolling_restart_under_load_loses_no_answer(
    world: tuple[LocalCluster, Switch], expected: str
) -> None:
    cluster, switch = world

    with healed(cluster, switch), Eyes(cluster.nodes) as eyes:
        for node in cluster.nodes[:3]:
            rest = others(cluster, node)
            epoch = node.status()["epoch"]
            with Clients(rest, ASKED) as clients:
                assert node.stop() == 0
                cluster.wait_until_operational(rest, after_epoch=epoch)
                node.start()
                cluster.wait(partial(knows_all, node), "the node that is back")
            cluster.wait_until_operational()  # a node that is back gets layers in a quiet moment
            assert [answer for answer in clients.answers if answer.code not in (200, 503)] == []
            all_right(eyes, clients, expected)
