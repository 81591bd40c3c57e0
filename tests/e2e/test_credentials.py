"""What proves that a node belongs: the secret is replaced under load, or the operator signs."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from butterfly.admin.main import main
from tests.support.certificates import OperatorAuthority, write_files
from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster

pytestmark = pytest.mark.e2e

MODEL = {"source_type": "embedded", "source_path": "toy-llama", "name": "toy"}
BARE = {"role": "coordinator", "capacity": 0.0}
WAIT_SECONDS = 60.0


def ask(node: LocalNode) -> tuple[int, Any]:
    question = {"model": "toy", "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    return node.post("/v1/completions", question)


class Client:
    """Asks one node after the other, all the time; all answers must be the same."""

    def __init__(self, nodes: list[LocalNode]) -> None:
        self._nodes = cycle(nodes)
        self.answers_count = 0
        self.failures: list[object] = []
        self._ending = threading.Event()
        code, body = ask(nodes[0])
        assert code == 200, body
        self._expected = body["choices"][0]["text"]

    def run(self) -> None:
        while not self._ending.is_set():
            node = next(self._nodes)
            code, body = ask(node)
            if code != 200 or body["choices"][0]["text"] != self._expected:
                self.failures.append((node.name, code, body))
            self.answers_count += 1

    @contextmanager
    def asking(self) -> Iterator["Client"]:
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ending.set()
            thread.join(WAIT_SECONDS)

    def asks_on(self, cluster: LocalCluster) -> None:
        """Until every node has answered once more from here on."""
        goal = self.answers_count + 2 * len(cluster.nodes)
        cluster.wait(lambda: self.answers_count >= goal, "more answers")


def security(node: LocalNode) -> dict[str, Any]:
    found: dict[str, Any] = node.status().get("security", {})
    return found


def rotate(path: Path, stage: str) -> None:
    assert main(["secret", "rotate", "--stage", stage, str(path)]) == 0


def replace_the_secret(cluster: LocalCluster, client: Client, secrets: list[Path]) -> None:
    """As ``butterfly-admin`` says: each step on every node before the next step."""
    nodes = cluster.nodes[: len(secrets)]
    before = security(nodes[0])["mints"]
    rotate(secrets[0], "add")
    for path in secrets[1:]:
        shutil.copy(secrets[0], path)
    cluster.wait(lambda: all(len(security(node)["accepts"]) == 2 for node in nodes), "two secrets")
    client.asks_on(cluster)
    for node, path in zip(nodes, secrets, strict=True):
        rotate(path, "switch")
        cluster.wait(lambda node=node: security(node)["mints"] != before, "the new one mints")  # type: ignore[misc]
        client.asks_on(cluster)
    for path in secrets:
        rotate(path, "finish")
    cluster.wait(lambda: all(len(security(node)["accepts"]) == 1 for node in nodes), "one secret")
    client.asks_on(cluster)
    assert {security(node)["mints"] for node in nodes} == {security(nodes[0])["mints"]}
    assert security(nodes[0])["mints"] != before


def test_no_answer_is_lost_while_the_secret_is_replaced_and_the_old_one_is_refused_after(
    tmp_path: Path,
) -> None:
    with local_cluster(
        tmp_path, MODEL, nodes=4, start=False, cluster={"quorum_size": 3}
    ) as cluster:
        *nodes, newcomer = cluster.nodes
        old = tmp_path / "secret"
        secrets = [tmp_path / f"secret-{number}" for number in range(len(nodes))]
        for node, path in zip(nodes, secrets, strict=True):
            shutil.copy(old, path)
            node.settings["security"]["cluster_secret_file"] = str(path)
        for node in (nodes[2], newcomer):
            node.settings["node"] |= BARE
        for node in nodes[:2]:
            node.settings["node"]["capacity"] = 0.4
        for node in nodes:
            node.start()
        cluster.wait_until_operational(nodes[:2])
        cluster.wait(lambda: ask(nodes[2])[0] == 200, "an answer through the node without layers")

        with Client(nodes).asking() as client:
            replace_the_secret(cluster, client, secrets)

            newcomer.start()
            cluster.wait(lambda: "secret" in newcomer.errors(), "that its secret is refused")
            assert newcomer.status()["cluster_id"] is None
            newcomer.kill()
            newcomer.settings["security"]["cluster_secret_file"] = str(secrets[0])
            newcomer.start()
            cluster.wait(lambda: nodes[0].status()["cluster_size"] == 4, "it with the new secret")
            client.asks_on(cluster)

        assert client.failures == []


def test_nodes_with_certificates_of_the_operators_authority_serve_together(tmp_path: Path) -> None:
    authority = OperatorAuthority("the operator")
    with local_cluster(tmp_path, MODEL, nodes=2, start=False) as cluster:
        for node in cluster.nodes:
            files = write_files(tmp_path / f"tls-{node.name}", authority.pem, authority.sign())
            node.settings["security"] = {
                "ca_file": str(files.ca),
                "certificate_file": str(files.certificate),
                "private_key_file": str(files.private_key),
            }
        cluster.start()
        cluster.wait_until_operational()

        told = [ask(node) for node in cluster.nodes]
        assert [code for code, _ in told] == [200, 200], told
        assert len({body["choices"][0]["text"] for _, body in told}) == 1
        for node in cluster.nodes:
            assert node.status()["layers"] is not None
            assert security(node)["authenticated"]
            assert security(node)["accepts"] == ["CN=the operator"]
