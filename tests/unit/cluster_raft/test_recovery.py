"""When the majority is gone for good: one survivor, all of its log, all or nothing."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from butterfly.admin.main import main
from butterfly_cluster import durable_files, together
from butterfly_cluster.commands import encode_command
from butterfly_cluster.founding_messages import cluster_id_of
from butterfly_cluster.identity import load_or_create
from butterfly_cluster.journal import Entry, Journal
from butterfly_cluster.membership import MEMBERSHIP, VoterChange
from butterfly_cluster.raft import LAN, ChannelLike, RaftNode
from butterfly_cluster.recovery import carry_out, plan_recovery
from butterfly_cluster.snapshot import JOURNAL_NAME, open_log
from butterfly_cluster.state import decode_state
from butterfly_cluster.together import INTENT_NAME
from butterfly_core.errors import ConfigError, StorageError, Unreachable
from butterfly_core.ids import NodeId
from tests.sim.virtual_loop import run_virtually
from tests.support.clusters import joined, node


def survivor(path: Path, *changes: VoterChange, remove_me: bool = False) -> NodeId:
    """A data_dir whose log has three members in it; the node itself is none of them.

    The log ends with the changes of voters.
    """
    data_dir = load_or_create(path)
    me = data_dir.identity.node_id
    founders = tuple(sorted((me, node(2), node(3))))
    data_dir.remember_cluster(cluster_id_of("demo", founders), "demo", founders)
    journal = Journal(path / JOURNAL_NAME, sync_file=lambda _: None)
    journal.append(Entry(b"\1", 1, 1))
    for index, command in enumerate(joined(3), start=2):
        journal.append(Entry(b"\0" + encode_command(command), index, 2))
    ending = (*changes, VoterChange("rem", me)) if remove_me else changes
    for index, change in enumerate(ending, start=journal.entries[-1].log_index + 1):
        journal.append(Entry(bytes([MEMBERSHIP]) + change.encode(), index, 2))
    journal.set_term(7, me)
    journal.close()
    data_dir.close()
    return me


def contents(path: Path) -> dict[str, bytes]:
    names = ("identity.json", "raft.journal", "raft.snapshot")
    return {name: (path / name).read_bytes() for name in names if (path / name).exists()}


def test_the_survivor_votes_alone_in_another_cluster_and_keeps_its_log(tmp_path: Path) -> None:
    me = survivor(tmp_path)
    recovery = plan_recovery(tmp_path)
    carry_out(tmp_path, recovery)
    data_dir = load_or_create(tmp_path)
    journal, snapshot = open_log(tmp_path, lambda _: None)

    assert recovery.voters == {me, node(2), node(3)}
    assert data_dir.identity.node_id == me
    assert data_dir.identity.cluster_id == cluster_id_of("demo", (me,), 1) != recovery.old_cluster
    assert snapshot is not None
    assert snapshot.voters == {me}
    assert (journal.term, journal.vote) == (8, None)
    assert journal.commit_index == journal.entries[-1].log_index == recovery.last_index + 2
    assert set(recovery.removed) == {node(1), node(2), node(3)}
    assert decode_state(snapshot.state).members == {}
    assert len(list(tmp_path.glob("*.before-recovery-*"))) == 2


@pytest.mark.parametrize(
    ("changes", "remove_me"),
    [((VoterChange("add", node(4)),), False), ((), True), ((VoterChange("rem", node(3)),), True)],
)
def test_the_survivor_leads_alone_also_when_its_log_ends_with_a_change_of_voters(
    changes: tuple[VoterChange, ...], remove_me: bool, tmp_path: Path
) -> None:
    me = survivor(tmp_path, *changes, remove_me=remove_me)
    carry_out(tmp_path, plan_recovery(tmp_path))

    for _ in range(2):
        assert run_virtually(led_by(tmp_path, me)) == {me}


async def led_by(path: Path, me: NodeId) -> frozenset[NodeId]:
    """Start the log that lies there, and return who votes once the node leads."""

    async def dial(peer: NodeId) -> ChannelLike:
        raise Unreachable(f"{peer} is lost")

    raft = RaftNode(
        me=me,
        voters=frozenset({me}),
        data_dir=path,
        timing=LAN,
        dial=dial,
        apply=lambda *_: None,
        snapshot=bytes,
        restore=lambda _: lambda: None,
        clock=asyncio.get_running_loop().time,
        rng=random.Random(1),
    )
    running = asyncio.ensure_future(raft.run())
    try:
        async with asyncio.timeout(10):
            while not raft.is_leader:
                await asyncio.sleep(0.1)
        return raft.voters
    finally:
        running.cancel()
        await asyncio.wait({running})


def test_a_second_recovery_makes_a_third_cluster(tmp_path: Path) -> None:
    survivor(tmp_path)
    first = plan_recovery(tmp_path)
    carry_out(tmp_path, first)
    second = plan_recovery(tmp_path)
    carry_out(tmp_path, second)

    assert second.after.generation == 2
    assert len({first.old_cluster, first.new_cluster, second.new_cluster}) == 3


class PowerCut(BaseException):
    """The machine stops between two system calls."""


class FailingOs:
    """``os`` that stops the world, or raises, at one of the calls that change the disk."""

    def __init__(self, at: int, failure: BaseException) -> None:
        self._left, self._failure = at, failure

    def __getattr__(self, name: str) -> object:
        real = getattr(os, name)
        if name not in ("open", "write", "fsync", "rename", "unlink"):
            return real

        def call(*given: object, **named: object) -> object:
            self._left -= 1
            if self._left == 0:
                raise self._failure
            return real(*given, **named)

        return call


@pytest.fixture(params=["power cut", "full disk"])
def failure(request: pytest.FixtureRequest) -> BaseException:
    return PowerCut() if request.param == "power cut" else OSError(28, "No space left on device")


def test_a_recovery_that_is_interrupted_anywhere_is_all_or_nothing(
    failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = set()
    for at in range(1, 100):
        path = tmp_path / str(at)
        survivor(path)
        before, recovery = contents(path), plan_recovery(path)
        with monkeypatch.context() as patched:
            shim = FailingOs(at, failure)
            patched.setattr(durable_files, "os", shim)
            patched.setattr(together, "os", shim)
            try:
                carry_out(path, recovery)
                finished = True
            except (PowerCut, StorageError):
                finished = False
        begun = (path / INTENT_NAME).exists()
        load_or_create(path).close()
        after = contents(path)
        assert not (path / INTENT_NAME).exists()
        changed = plan_recovery(path).before.cluster_id == recovery.new_cluster
        assert changed == (begun or "raft.snapshot" in after)
        assert changed or after == before
        done.add(changed)
        if finished:
            break
    assert done == {True, False}


def test_a_damaged_intent_is_refused(tmp_path: Path) -> None:
    survivor(tmp_path)
    (tmp_path / INTENT_NAME).write_bytes(b"BFLYR001 something")

    with pytest.raises(StorageError, match="damaged"):
        load_or_create(tmp_path)


def test_without_the_flag_it_only_says_what_it_would_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survivor(tmp_path)
    before = contents(tmp_path)

    assert main(["recover", "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "WARNING" in said
    assert "Nothing was changed" in said
    assert contents(tmp_path) == before


def test_with_the_flag_it_names_both_clusters_and_how_others_rejoin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survivor(tmp_path)
    recovery = plan_recovery(tmp_path)

    assert main(["recover", "--i-have-lost-the-majority", "--data-dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert str(recovery.old_cluster) in said
    assert str(recovery.new_cluster) in said
    assert "--forget" in said


def test_a_running_node_s_directory_is_left_alone(tmp_path: Path) -> None:
    survivor(tmp_path)
    before, held = contents(tmp_path), load_or_create(tmp_path)

    assert main(["recover", "--i-have-lost-the-majority", "--data-dir", str(tmp_path)]) == 2
    assert contents(tmp_path) == before
    held.close()


def test_a_node_without_a_cluster_has_nothing_to_recover(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no node has lived"):
        plan_recovery(tmp_path)
    load_or_create(tmp_path).close()
    with pytest.raises(ConfigError, match="belongs to no cluster"):
        plan_recovery(tmp_path)
