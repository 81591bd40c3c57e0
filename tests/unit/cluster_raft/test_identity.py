"""A node's id and its log are one: neither is used without the other."""

import json
from pathlib import Path

import pytest

from butterfly_cluster.founding_messages import Proposal, cluster_id_of
from butterfly_cluster.identity import IDENTITY_NAME, decode_identity, load_or_create
from butterfly_cluster.snapshot import JOURNAL_NAME, SNAPSHOT_NAME
from butterfly_core.errors import ConfigError, IllegalTransition, StorageError
from butterfly_core.ids import NodeId

A = NodeId("a" * 32)
PROMISE = Proposal("demo", ("a:1", "b:1"), (A,), A, "17")


def test_an_id_is_made_once(tmp_path: Path) -> None:
    first = load_or_create(tmp_path / "data")
    first.close()
    second = load_or_create(tmp_path / "data")

    assert second.identity == first.identity
    assert len(second.identity.node_id) == 32


def test_two_directories_have_two_ids(tmp_path: Path) -> None:
    ids = {load_or_create(tmp_path / name).identity.node_id for name in "ab"}

    assert len(ids) == 2


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    held = load_or_create(tmp_path)

    with pytest.raises(ConfigError, match="in use by another process"):
        load_or_create(tmp_path)
    held.close()
    load_or_create(tmp_path).close()


def test_promise_and_cluster_survive(tmp_path: Path) -> None:
    data_dir = load_or_create(tmp_path)
    data_dir.remember_promise(PROMISE)
    data_dir.close()
    data_dir = load_or_create(tmp_path)
    assert data_dir.identity.promise == PROMISE

    data_dir.remember_cluster(cluster_id_of("demo", (A,)), "demo", (A,))
    data_dir.close()
    again = load_or_create(tmp_path).identity
    assert (again.cluster_id, again.founders) == (cluster_id_of("demo", (A,)), (A,))
    assert again.promise is None
    assert again.node_id == data_dir.identity.node_id


def test_a_node_does_not_change_its_cluster(tmp_path: Path) -> None:
    data_dir = load_or_create(tmp_path)
    data_dir.remember_cluster(cluster_id_of("demo", (A,)), "demo", (A,))

    with pytest.raises(IllegalTransition):
        data_dir.remember_cluster(cluster_id_of("demo", ()), "demo", ())


def test_an_id_whose_journal_is_gone_never_comes_back(tmp_path: Path) -> None:
    data_dir = load_or_create(tmp_path)
    old = data_dir.identity.node_id
    data_dir.remember_cluster(cluster_id_of("demo", (A,)), "demo", (A,))
    data_dir.close()
    (tmp_path / JOURNAL_NAME).unlink()
    again = load_or_create(tmp_path)

    assert again.identity.node_id != old
    assert again.identity.cluster_id is None
    assert again.replaced == old


def test_a_journal_of_nobody_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).write_bytes(b"somebody's")
    load_or_create(tmp_path)

    assert not (tmp_path / JOURNAL_NAME).exists()
    assert len(list(tmp_path.glob(f"{JOURNAL_NAME}.of-nobody-*"))) == 1


def test_starting_over_keeps_the_old_log_beside(tmp_path: Path) -> None:
    data_dir = load_or_create(tmp_path)
    old = data_dir.identity.node_id
    data_dir.remember_cluster(cluster_id_of("demo", (A,)), "demo", (A,))
    data_dir.start_over()

    assert data_dir.identity.node_id != old
    assert not (tmp_path / JOURNAL_NAME).exists()
    assert (tmp_path / f"{JOURNAL_NAME}.{old[:8]}").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"version": 3}',
        b'{"version": 2}',
        b'{"version": 1, "node_id": "x"}',
    ],
)
def test_a_damaged_identity_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / IDENTITY_NAME).write_bytes(content)

    with pytest.raises(StorageError, match="damaged"):
        load_or_create(tmp_path)


def test_the_file_is_readable_by_people(tmp_path: Path) -> None:
    node_id = load_or_create(tmp_path).identity.node_id

    assert json.loads((tmp_path / IDENTITY_NAME).read_text())["node_id"] == node_id


def test_a_directory_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(ConfigError, match="cannot be made"):
        load_or_create(tmp_path / "file" / "data")


def member(path: Path) -> NodeId:
    """A directory that belongs to a cluster; returns its node's id."""
    data_dir = load_or_create(path)
    data_dir.remember_cluster(cluster_id_of("demo", (A,)), "demo", (A,))
    data_dir.close()
    return data_dir.identity.node_id


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_no_flipped_byte_makes_another_identity(flip: int, tmp_path: Path) -> None:
    member(tmp_path)
    whole = (tmp_path / IDENTITY_NAME).read_bytes()
    before = decode_identity(whole, tmp_path)
    for place in range(len(whole)):
        data = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
        try:
            assert decode_identity(data, tmp_path) == before  # a space more or less
        except StorageError:
            continue


def test_a_file_of_the_first_version_is_still_read(tmp_path: Path) -> None:
    me = member(tmp_path)
    fields = json.loads((tmp_path / IDENTITY_NAME).read_text())
    for later in ("checksum", "generation", "former_cluster"):
        del fields[later]
    (tmp_path / IDENTITY_NAME).write_text(json.dumps({**fields, "version": 1}))

    again = load_or_create(tmp_path).identity
    assert (again.node_id, again.cluster_id) == (me, cluster_id_of("demo", (A,)))


@pytest.mark.parametrize("name", [JOURNAL_NAME, SNAPSHOT_NAME])
def test_a_damaged_log_makes_a_new_node_that_may_join_its_cluster_only(
    name: str, tmp_path: Path
) -> None:
    old = member(tmp_path)
    (tmp_path / name).write_bytes(b"what a broken disk gives back")
    data_dir = load_or_create(tmp_path)
    identity = data_dir.identity

    assert identity.node_id != old
    assert identity.cluster_id is None
    assert identity.former_cluster == cluster_id_of("demo", (A,))
    assert "is damaged" in data_dir.story
    assert (tmp_path / f"{name}.{old[:8]}").read_bytes() == b"what a broken disk gives back"
    data_dir.close()
    assert load_or_create(tmp_path).identity == identity


def test_forgetting_frees_a_node_of_its_former_cluster(tmp_path: Path) -> None:
    member(tmp_path)
    (tmp_path / JOURNAL_NAME).unlink()
    data_dir = load_or_create(tmp_path)
    assert data_dir.identity.former_cluster is not None
    data_dir.start_over()

    assert data_dir.identity.former_cluster is None
