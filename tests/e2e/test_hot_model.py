"""Another revision takes over while the first one serves: nothing is lost or fetched twice."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from butterfly_weights.proving import create_manifest, write_manifest
from butterfly_weights.source import open_source
from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster
from tests.support.tiny_models import reference_greedy, reference_model
from tests.support.weight_worlds import (
    PROMPT,
    TOKENS,
    Tensor,
    World,
    bytes_from_cache,
    bytes_from_source,
    bytes_of,
    greedy_answer,
    layer_range,
    make_world,
)

pytestmark = pytest.mark.e2e

CHANGED_LAYER = 3
CHANGED = f"model.layers.{CHANGED_LAYER}.mlp.up_proj.weight"


@dataclass(frozen=True)
class Revision:
    folder: Path
    answer: str


@dataclass
class Asked:
    """What clients were answered so far, and by which node; nothing but answers is forgiven."""

    answers: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, node: LocalNode) -> None:
        try:
            told = greedy_answer(node)
        except (AssertionError, OSError) as error:
            with self.lock:
                self.refused.append(f"{node.name}: {error}")
        else:
            with self.lock:
                self.answers.append(told)


@contextmanager
def continuous_questions(nodes: list[LocalNode]) -> Iterator[Asked]:
    """Every node is asked again as soon as it has answered."""
    asked, over = Asked(), threading.Event()

    def keep_asking(node: LocalNode) -> None:
        while not over.is_set():
            asked.ask(node)

    threads = [threading.Thread(target=keep_asking, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_revision_takes_over_between_two_answers_and_a_bad_one_does_not(tmp_path: Path) -> None:
    world = make_world(tmp_path / "a")
    changed = world.tensor(CHANGED)
    first = Revision(world.tiny.folder, world.answer)
    _publish(first.folder)
    second = _revised(world, changed, tmp_path / "b")
    bad = _damaged(second, changed, tmp_path / "bad")
    model = {"source_type": "filesystem", "source_path": str(first.folder), "name": "tiny"}
    patient = {"dead_after_seconds": 15.0, "admission_lease_seconds": 10.0}  # a slow machine
    with local_cluster(tmp_path / "nodes", model, equal=True, cluster=patient) as cluster:
        epoch = cluster.wait_until_operational()

        with continuous_questions(cluster.nodes) as asked:
            code, told = _load(cluster.nodes[1], bad)
        assert code == 1, told
        assert "withdrawn" in told
        assert CHANGED in told
        assert (asked.refused, set(asked.answers)) == ([], {first.answer})
        assert {node.status()["epoch"] for node in cluster.nodes} == {epoch}
        assert {node.status()["offer"]["state"] for node in cluster.nodes} == {"withdrawn"}

        before = [node.status() for node in cluster.nodes]
        with continuous_questions(cluster.nodes) as asked:
            code, told = _load(cluster.nodes[0], second.folder)
            cluster.wait(
                lambda: asked.answers[-9:] == [second.answer] * 9, "answers of the new one"
            )
        assert code == 0, told
        assert "switched: tiny serves" in told
        assert asked.refused == []
        assert set(asked.answers) == {first.answer, second.answer}
        assert cluster.wait_until_operational() == epoch + 1
        for old, node in zip(before, cluster.nodes, strict=True):
            status = node.status()
            holds_it = CHANGED_LAYER in layer_range(status["layers"])
            fetched = bytes_from_source(status) - bytes_from_source(old)
            assert fetched == (changed.nbytes if holds_it else 0)
            assert bytes_from_cache(status) == bytes_from_cache(old)
            assert status["model"]["source"] == f"filesystem:{second.folder}"

        _restart_and_ask(cluster, cluster.nodes[2], second)


def _restart_and_ask(cluster: LocalCluster, node: LocalNode, revision: Revision) -> None:
    """Its ``[model]`` section still names the first revision."""
    epoch = cluster.nodes[0].status()["epoch"]
    node.kill()
    node.start()
    cluster.wait_until_operational(after_epoch=epoch)
    assert [greedy_answer(each) for each in cluster.nodes] == [revision.answer] * 3


def _load(node: LocalNode, folder: Path) -> tuple[int, str]:
    """Exit code and output of ``butterfly-admin load``."""
    program = [sys.executable, "-m", "butterfly.admin.main", "load", str(folder)]
    flags = ["--name", "tiny", "--url", node.url, "--wait", "--timeout", "150"]
    ended = subprocess.run([*program, *flags], capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def _publish(folder: Path) -> None:
    source = open_source("filesystem", str(folder))
    write_manifest(source, create_manifest(source))
    source.close()


def _revised(world: World, tensor: Tensor, folder: Path) -> Revision:
    """The model with the halves of one tensor swapped, with its manifest."""
    shutil.copytree(world.tiny.folder, folder)
    data = bytes_of(folder, tensor)
    half = tensor.nbytes // 2
    _write(folder, tensor, data[half:] + data[:half])
    _publish(folder)
    ids = reference_greedy(reference_model(replace(world.tiny, folder=folder)), PROMPT, TOKENS)
    answer = str(Tokenizer.from_file(str(folder / "tokenizer.json")).decode(ids))
    assert answer != world.answer
    return Revision(folder, answer)


def _damaged(revision: Revision, tensor: Tensor, folder: Path) -> Path:
    """A copy with its manifest, in which one byte is not what that says."""
    shutil.copytree(revision.folder, folder)
    data = bytearray(bytes_of(folder, tensor))
    data[len(data) // 2] ^= 1
    _write(folder, tensor, bytes(data))
    return folder


def _write(folder: Path, tensor: Tensor, data: bytes) -> None:
    with (folder / tensor.shard).open("r+b") as file:
        file.seek(tensor.start)
        file.write(data)
