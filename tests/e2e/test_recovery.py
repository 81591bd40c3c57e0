"""Machines and processes die; the rest goes on and serves again."""

import os
import re
import signal
import threading
from collections.abc import Iterator

import openai
import pytest

from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster
from tests.support.tiny_models import (
    TinyModel,
    make_tiny_model,
    reference_greedy,
    reference_model,
)

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

PROMPT = [256, 72, 101, 108, 108, 111]
TOKENS = 10
LONG_TOKENS = 480


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("model"), layers=6, tokenizer=True)


@pytest.fixture(scope="module")
def expected(tiny: TinyModel) -> list[int]:
    return reference_greedy(reference_model(tiny), PROMPT, TOKENS)


@pytest.fixture(scope="module")
def long_answer(tiny: TinyModel) -> str:
    return decoded(tiny, reference_greedy(reference_model(tiny), PROMPT, LONG_TOKENS))


@pytest.fixture(scope="module")
def cluster(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    model = {"source_type": "filesystem", "source_path": str(tiny.folder), "name": "tiny"}
    folder = tmp_path_factory.mktemp("cluster")
    calm = {"quorum_size": 2, "rebalance_after_seconds": 1.0}
    with local_cluster(folder, model, cluster=calm | {"cluster_name": "recovery"}) as running:
        running.wait_until_operational()
        yield running


def answer(node: LocalNode) -> str:
    code, body = node.post(
        "/v1/completions",
        {
            "model": "tiny",
            "prompt": PROMPT,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        },
    )
    assert code == 200, body
    text: str = body["choices"][0]["text"]
    return text


def decoded(tiny: TinyModel, ids: list[int]) -> str:
    from tokenizers import Tokenizer

    text: str = Tokenizer.from_file(str(tiny.folder / "tokenizer.json")).decode(ids)
    return text


class Stream:
    """A long greedy answer on a thread of its own; ``first`` is set with its first piece."""

    def __init__(self, node: LocalNode) -> None:
        self.text = ""
        self.first = threading.Event()
        self._client = openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        pieces = self._client.completions.create(
            model="tiny",
            prompt=PROMPT,
            max_tokens=LONG_TOKENS,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        for piece in pieces:
            self.text += piece.choices[0].text
            self.first.set()


def member_ids(node: LocalNode, *, alive: bool) -> set[str]:
    return {m["node_id"] for m in node.status()["members"] if m["alive"] is alive}


def test_a_killed_engine_is_a_new_epoch_and_not_the_nodes_end(
    cluster: LocalCluster, tiny: TinyModel, expected: list[int]
) -> None:
    victim = cluster.nodes[1]
    node_id, epoch = victim.status()["node_id"], victim.status()["epoch"]

    os.kill(victim.engine_pid(), signal.SIGKILL)
    cluster.wait_until_operational(after_epoch=epoch)

    assert victim.is_running
    assert node_id in member_ids(cluster.nodes[0], alive=True)
    assert {answer(node) for node in cluster.nodes} == {decoded(tiny, expected)}


@pytest.mark.parametrize("role", ["worker", "coordinator"])
def test_the_rest_serves_after_a_kill_and_takes_the_node_back(
    cluster: LocalCluster, tiny: TinyModel, expected: list[int], long_answer: str, role: str
) -> None:
    leads = cluster.coordinator()
    workers = [node for node in cluster.nodes if node is not leads]
    victim = leads if role == "coordinator" else workers[0]
    rest = [node for node in cluster.nodes if node is not victim]
    node_id, epoch = victim.status()["node_id"], victim.status()["epoch"]

    stream = Stream(rest[0])
    stream.first.wait(60)
    victim.kill()
    assert len(stream.text) < len(long_answer), "the answer must be under way"
    epoch = cluster.wait_until_operational(rest, after_epoch=epoch)
    stream.thread.join(60)

    assert stream.text == long_answer

    assert member_ids(rest[0], alive=False) == {node_id}
    assert rest[0].status()["coordinator"] != node_id
    assert {answer(node) for node in rest} == {decoded(tiny, expected)}

    victim.start()
    cluster.wait_until_operational(after_epoch=epoch)

    assert victim.status()["node_id"] == node_id
    assert {answer(node) for node in cluster.nodes} == {decoded(tiny, expected)}


def test_a_node_that_is_asked_to_leave_drains_and_is_gone(
    cluster: LocalCluster, tiny: TinyModel, expected: list[int]
) -> None:
    leaves = next(node for node in cluster.nodes if node is not cluster.coordinator())
    rest = [node for node in cluster.nodes if node is not leaves]
    node_id, epoch = leaves.status()["node_id"], leaves.status()["epoch"]

    assert leaves.stop() == 0
    epoch = cluster.wait_until_operational(rest, after_epoch=epoch)

    assert node_id not in {m["node_id"] for m in rest[0].status()["members"]}
    assert {answer(node) for node in rest} == {decoded(tiny, expected)}

    leaves.start()
    cluster.wait_until_operational(after_epoch=epoch)


def test_a_coordinator_that_is_asked_to_leave_lets_another_one_lead_first(
    cluster: LocalCluster, long_answer: str
) -> None:
    leaves = cluster.coordinator()
    rest = [node for node in cluster.nodes if node is not leaves]
    before = rest[0].status()
    stream = Stream(rest[0])
    stream.first.wait(60)

    assert leaves.stop() == 0
    epoch = cluster.wait_until_operational(rest, after_epoch=before["epoch"])
    stream.thread.join(60)

    assert stream.text == long_answer
    term = before["term"] + 1
    # it wrote so while it was a member itself: nobody had to miss it first
    told = re.search(rf"node (\w+) leads now \(term {term}\)", leaves.log)
    assert told, leaves.log[-2000:]
    (successor,) = [node for node in rest if node.status()["node_id"].startswith(told[1])]
    assert f"this node is the coordinator now (term {term})" in successor.log
    assert "nobody takes over" not in leaves.log

    leaves.start()
    cluster.wait_until_operational(after_epoch=epoch)


@pytest.mark.slow  # in CI: five nodes, in test_partitions.py
def test_all_nodes_killed_at_once_resume_with_their_identities(
    cluster: LocalCluster, tiny: TinyModel, expected: list[int]
) -> None:
    before = cluster.nodes[0].status()

    for node in cluster.nodes:
        node.kill()
    cluster.start()
    cluster.wait_until_operational(after_epoch=before["epoch"])

    after = cluster.nodes[0].status()
    for key in ("cluster_id", "node_id", "merkle_root"):
        assert after[key] == before[key]
    assert {answer(node) for node in cluster.nodes} == {decoded(tiny, expected)}
