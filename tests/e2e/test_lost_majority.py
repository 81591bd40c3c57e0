"""What a majority cannot mend, with real nodes: it is gone for good, or a node's log is damaged."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from butterfly_cluster.snapshot import JOURNAL_NAME
from tests.support.local_cluster import LocalCluster, LocalNode, local_cluster

pytestmark = [pytest.mark.e2e, pytest.mark.chaos]

MODEL = {"source_type": "embedded", "source_path": "toy-llama", "name": "toy"}
CALM = {"quorum_size": 1, "founding_grace_seconds": 1.0}
SURE = "--i-have-lost-the-majority"
FAILED, USAGE = 1, 2


def ask(node: LocalNode) -> tuple[int, Any]:
    question = {"model": "toy", "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    return node.post("/v1/completions", question)


def answer(node: LocalNode) -> str:
    code, body = ask(node)
    assert code == 200, body
    return str(body["choices"][0]["text"])


def refused(node: LocalNode) -> str:
    """Why; empty while it answers, or is not up yet."""
    code, body = ask(node)
    return str(body["error"]["message"]) if code == 503 else ""


def recover(node: LocalNode, *flags: str) -> tuple[int, str]:
    command = ["-m", "butterfly.admin.main", "recover", "--config", str(node.config_path), *flags]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def members(node: LocalNode, *, alive: bool = True) -> set[str]:
    told = node.status().get("members", [])
    return {member["node_id"] for member in told if member["alive"] is alive}


def voters(node: LocalNode) -> set[str]:
    told = node.status().get("members", [])
    return {member["node_id"] for member in told if member["voter"]}


def problem(node: LocalNode, code: str) -> str:
    errors = [e["message"] for e in node.status().get("errors", []) if e["code"] == code]
    return errors[0] if errors else ""


def start_three_voters(cluster: LocalCluster) -> None:
    """The first one holds all layers; the others vote, and have no engine."""
    for node in cluster.nodes[1:]:
        node.settings["node"]["capacity"] = 0.0
    cluster.start()
    cluster.wait(lambda: len(voters(cluster.nodes[0])) == 3, "three voters")


def test_a_survivor_serves_on_after_an_operator_says_that_the_majority_is_lost(
    tmp_path: Path,
) -> None:
    whole = {"capacity": 0.5, "role": "coordinator"}
    with local_cluster(tmp_path, MODEL, equal=True, start=False, cluster=CALM, node=whole) as made:
        survivor, old, _ = made.nodes
        start_three_voters(made)
        made.wait_until_operational([survivor])
        text, before = answer(survivor), survivor.status()

        for lost in made.nodes[1:]:
            lost.kill()
        made.wait(lambda: "1 of 3 voters" in refused(survivor), "503 and the reason")
        code, told = recover(survivor, SURE)
        assert (code, "stop it first" in told) == (USAGE, True), told
        survivor.kill()

        the_operator_decides(survivor, before)
        survivor.start()
        made.wait_until_operational([survivor])
        assert answer(survivor) == text
        after = survivor.status()
        assert (after["node_id"], after["merkle_root"]) == (
            before["node_id"],
            before["merkle_root"],
        )
        assert after["cluster_id"] != before["cluster_id"]
        assert members(survivor) == voters(survivor) == {survivor.status()["node_id"]}

        the_old_one_stays_out(made, survivor, old, (before["cluster_id"], after["cluster_id"]))
        old.kill()
        old.start("--forget")
        made.wait(lambda: len(members(survivor)) == 2, "the old one as a new member")
        made.wait(lambda: ask(old)[0] == 200, "an answer through it")
        assert answer(old) == text
        assert old.status()["cluster_id"] == after["cluster_id"]


def the_operator_decides(survivor: LocalNode, before: dict[str, Any]) -> None:
    """Looks first, which changes nothing; then says so."""
    untouched = files(survivor.data_dir)

    code, told = recover(survivor)

    assert code == FAILED
    assert "WARNING" in told
    assert f"Nothing was changed. To do it, add {SURE}" in told
    others = {m["node_id"][:8] for m in before["members"]} - {before["node_id"][:8]}
    assert all(other in told for other in others)
    assert files(survivor.data_dir) == untouched

    code, told = recover(survivor, SURE)

    assert code == 0, told
    assert "--forget" in told
    kept = survivor.data_dir / f"{JOURNAL_NAME}.before-recovery-{before['cluster_id'][:8]}"
    assert kept.read_bytes() == untouched[JOURNAL_NAME]


def the_old_one_stays_out(
    cluster: LocalCluster, survivor: LocalNode, old: LocalNode, ids: tuple[str, str]
) -> None:
    """It comes back as it was: of a cluster that it may not leave by itself."""
    old.start()
    for node in (old, survivor):
        cluster.wait(lambda node=node: problem(node, "two_clusters"), "that there are two clusters")  # type: ignore[misc]
        told = problem(node, "two_clusters")
        assert all(cluster_id in told for cluster_id in ids), told
        assert "--forget" in told
    assert old.status()["cluster_id"] == ids[0]
    assert refused(old)
    assert len(members(survivor)) == 1
    assert ask(survivor)[0] == 200


def test_a_node_whose_journal_is_damaged_joins_again_by_itself_and_does_not_vote(
    tmp_path: Path,
) -> None:
    bare = {"capacity": 0.0, "role": "coordinator"}
    with local_cluster(tmp_path, MODEL, equal=True, start=False, cluster=CALM, node=bare) as made:
        first, _, damaged = made.nodes
        start_three_voters(made)
        made.wait(lambda: len(members(first)) == 3, "three members")
        was = damaged.status()
        damaged.kill()
        journal = damaged.data_dir / JOURNAL_NAME
        content = bytearray(journal.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 8] = bytes(byte ^ 0xFF for byte in content[middle : middle + 8])
        journal.write_bytes(content)

        damaged.start()
        fresh: set[str] = set()

        def is_back() -> bool:
            fresh.update({damaged.status().get("node_id", was["node_id"])} - {was["node_id"]})
            return bool(fresh) and fresh <= members(first)

        made.wait(is_back, "the damaged node under a new id")

        assert damaged.status()["cluster_id"] == was["cluster_id"]
        assert was["node_id"] in voters(first)
        assert not fresh & voters(first)
        (told,) = [event for event in damaged.status()["events"] if "starts over" in event]
        assert str(journal) in told
        kept = journal.with_name(f"{JOURNAL_NAME}.{was['node_id'][:8]}")
        assert kept.read_bytes() == content
