"""What cannot work is refused with words that a user can act on.

Most nodes here carry no layers (``capacity = 0``), so that no engine has to start.
"""

import json
import shutil
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster
from tests.support.s3 import S3Server, credentials_environment, rclone_s3
from tests.support.tiny_models import make_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.light]

BARE = {"role": "coordinator", "capacity": 0}
SHARD = "model-00002-of-00005.safetensors"
USAGE = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder, layers=2, tokenizer=True, shard_bytes_max=100_000)
    assert (folder / SHARD).exists(), sorted(path.name for path in folder.iterdir())
    return folder


@pytest.fixture(scope="module")
def newcomers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster that needs three members: its first node, one that joins, and two that try to
    with a wrong name and a wrong secret."""
    folder = tmp_path_factory.mktemp("newcomers")
    with local_cluster(
        folder, _local(model), nodes=4, start=False, node=BARE, cluster={"quorum_size": 3}
    ) as cluster:
        first, _, misnamed, stranger = cluster.nodes
        misnamed.settings["cluster"]["cluster_name"] = "tset"
        stranger.settings["security"]["cluster_secret_file"] = _secret(folder / "another", "ab")
        cluster.start()
        cluster.wait(lambda: first.status().get("cluster_size") == 2, "two members")
        yield cluster


def test_without_a_quorum_requests_get_503_with_the_reason(newcomers: LocalCluster) -> None:
    both = newcomers.nodes[:2]
    newcomers.wait(
        lambda: all(_blocking(node) == "quorum" and _live(node) == 2 for node in both),
        "readiness names the quorum of both",
    )
    for node in both:
        code, headers, answer = _ask(node)

        assert code == 503
        assert int(headers["Retry-After"]) > 0
        assert "no quorum: 2 of 3 members are up ([cluster] quorum_size)" in _told(answer)
        assert _check(node, "quorum")["detail"] == "2 members are up, 3 needed"
        assert "no quorum: 2 of 3" in node.errors()


def _live(node: LocalNode) -> object:
    return node.status().get("cluster_size")


def test_a_node_of_another_cluster_name_is_told_both_names(newcomers: LocalCluster) -> None:
    first, misnamed = newcomers.nodes[0], newcomers.nodes[2]

    error = _wait_for_error(newcomers, misnamed, "not_joined", "cluster name")

    assert "'tset'" in error
    assert "'test'" in error
    assert first.peer in error
    _assert_it_never_joined(misnamed, first)


def test_a_node_with_another_secret_is_told_that_secrets_differ(newcomers: LocalCluster) -> None:
    first, stranger = newcomers.nodes[0], newcomers.nodes[3]

    error = _wait_for_error(newcomers, stranger, "not_joined", "secret")

    assert first.peer in error
    _assert_it_never_joined(stranger, first)


def _assert_it_never_joined(node: LocalNode, first: LocalNode) -> None:
    assert _blocking(node) == "joined"
    assert _ask(node)[0] == 503
    members = {member["node_id"] for member in first.status()["members"]}
    assert node.status()["node_id"] not in members


def test_one_of_three_equal_nodes_says_whom_it_waits_for(model: Path, tmp_path: Path) -> None:
    with local_cluster(tmp_path, _local(model), equal=True, start=False, node=BARE) as cluster:
        only, *others = cluster.nodes
        only.start()

        error = _wait_for_error(cluster, only, "not_joined", "1 of 3 founders")

        assert "2 are needed" in error
        assert all(other.peer in error for other in others)
        assert _blocking(only) == "joined"
        assert _ask(only)[0] == 503


def test_a_model_that_does_not_fit_is_refused_with_the_sums_of_each_node(
    model: Path, tmp_path: Path
) -> None:
    with local_cluster(tmp_path, _local(model), nodes=1, node={"capacity": 1e-9}) as cluster:
        (node,) = cluster.nodes

        error = _wait_for_error(cluster, node, "no_plan", "does not fit")

        assert node.status()["node_id"][:8] in error
        assert "the workspace alone needs 256 MiB more" in error
        assert "would make it fit:\n  - add a machine with at least" in error
        assert _blocking(node) == "plan"
        assert _check(node, "plan")["detail"] == error
        code, _, answer = _ask(node)
        assert code == 503
        assert error.splitlines()[0] in _told(answer)


# Sources that cannot be read.


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A bucket ``models`` with a folder for each way in which a model can be broken."""
    root = tmp_path_factory.mktemp("s3")
    bucket = root / "models"
    for name in ("missing-shard", "truncated", "bad-header"):
        shutil.copytree(model, bucket / name)
    (bucket / "missing-shard" / SHARD).unlink()
    whole = (model / SHARD).read_bytes()
    (bucket / "truncated" / SHARD).write_bytes(whole[:-100])
    (bucket / "bad-header" / SHARD).write_bytes(whole[:8] + b"!" + whole[9:])
    with rclone_s3(root) as running:
        yield running


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("models/missing-shard", ("lacks the shard", SHARD, "models/missing-shard")),
        ("models/truncated", (SHARD, "it was cut off", "upload it again")),
        ("models/bad-header", (f"header of {SHARD}", "is not JSON")),
        ("models/no-such-prefix", ("models/no-such-prefix", "has no config.json")),
        ("no-such-bucket/model", ("no-such-bucket", "404")),
    ],
)
def test_a_broken_model_on_s3_is_named_and_never_served(
    server: S3Server, tmp_path: Path, place: str, words: tuple[str, ...]
) -> None:
    with _node_on(server, place, tmp_path, credentials_environment()) as cluster:
        _assert_source_refused(cluster, words)


def test_a_wrong_s3_secret_is_told_apart_from_a_missing_model(
    server: S3Server, tmp_path: Path
) -> None:
    wrong = credentials_environment(secret_key="not-the-secret")
    with _node_on(server, "models/truncated", tmp_path, wrong) as cluster:
        _assert_source_refused(cluster, ("403", "the secret key is wrong for this access key"))

        assert "not-the-secret" not in cluster.nodes[0].log
        assert "not-the-secret" not in cluster.nodes[0].errors()


def _node_on(
    server: S3Server, place: str, folder: Path, environment: dict[str, str]
) -> AbstractContextManager[LocalCluster]:
    model = {"source_type": "s3", "source_path": f"s3://{place}"}
    model |= {"endpoint_url": server.url, "name": "tiny"}
    return local_cluster(folder, model, nodes=1, environments=[environment], node=BARE)


def _assert_source_refused(cluster: LocalCluster, words: tuple[str, ...]) -> None:
    (node,) = cluster.nodes
    error = _wait_for_error(cluster, node, "model_source", words[0])
    cluster.wait(lambda: _blocking(node) == "model", "readiness names the model")

    assert [word for word in words if word not in error] == []
    assert _ask(node)[0] == 503


# What the command line refuses: exit code 2, and why on stderr.


@pytest.mark.parametrize("key", ["bind_address", "http_address"])
def test_a_port_in_use_ends_the_node_with_its_address(
    model: Path, tmp_path: Path, key: str
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = f"127.0.0.1:{holder.getsockname()[1]}"
        with local_cluster(tmp_path, _local(model), nodes=1, start=False, node=BARE) as cluster:
            (node,) = cluster.nodes
            node.settings["node"][key] = taken

            told = _refused_start(node)

    assert taken in told
    assert "in use" in told
    assert key in told


def test_an_unknown_key_ends_the_node_with_the_nearest_known_one(
    model: Path, tmp_path: Path
) -> None:
    with local_cluster(tmp_path, _local(model), nodes=1, start=False, node=BARE) as cluster:
        (node,) = cluster.nodes
        node.settings["cluster"]["quorum_sise"] = 3

        told = _refused_start(node)

    assert "quorum_sise" in told
    assert "quorum_size" in told
    assert str(node.config_path) in told


def _refused_start(node: LocalNode) -> str:
    """What a node printed that ended by itself, for wrong usage."""
    node.start()
    assert node.process is not None
    code = node.process.wait(120)
    assert code == USAGE, node.log
    assert "Traceback" not in node.log
    return node.log


def _local(folder: Path) -> dict[str, Any]:
    return {"source_type": "filesystem", "source_path": str(folder), "name": "tiny"}


def _secret(path: Path, content: str) -> str:
    path.write_text(content * 32 + "\n")
    path.chmod(0o600)
    return str(path)


def _wait_for_error(cluster: LocalCluster, node: LocalNode, code: str, words: str) -> str:
    """The message of the node's error of this code, once it says these words."""
    found: list[str] = []

    def told() -> bool:
        errors = [e["message"] for e in node.status().get("errors", []) if e["code"] == code]
        found[:] = [message for message in errors if words in message]
        return bool(found)

    cluster.wait(told, f"an error {code} with {words!r}")
    return found[0]


def _blocking(node: LocalNode) -> str | None:
    code, body = node.get("/readiness")
    assert code in (0, 503), body
    return body["blocking"] if code else None


def _check(node: LocalNode, name: str) -> dict[str, Any]:
    _, body = node.get("/readiness")
    return next(check for check in body["checks"] if check["name"] == name)


def _ask(node: LocalNode) -> tuple[int, dict[str, str], Any]:
    """Code, headers and body of the answer to a completion."""
    body = json.dumps({"model": "tiny", "prompt": "x"}).encode()
    request = urllib.request.Request(
        f"{node.url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, dict(answer.headers), json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), json.load(error)


def _told(answer: Any) -> str:
    return str(answer["error"]["message"])
