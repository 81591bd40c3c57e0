from pathlib import Path

import pytest

from butterfly.node.addresses import AddressBook
from butterfly_cluster.state import ClusterState
from butterfly_core.address import Address
from butterfly_core.errors import Unreachable
from tests.support.clusters import committed, joined, node


def test_members_come_first_and_what_was_learnt_survives_a_restart(tmp_path: Path) -> None:
    state = ClusterState()
    book = AddressBook(tmp_path / "peers.json", lambda: state)
    book.learn(node(1), Address("old", 1))
    book.learn(node(2), Address("learnt", 2))
    state = committed(joined(1))
    book.save()

    again = AddressBook(tmp_path / "peers.json", ClusterState)

    assert book.of(node(1)) == again.of(node(1)) == Address("127.0.0.1", 7001)
    assert again.of(node(2)) == Address("learnt", 2)
    with pytest.raises(Unreachable, match="00000000"):
        again.of(node(3))


def test_what_was_learnt_of_nodes_that_left_is_forgotten_on_the_disk_as_well(
    tmp_path: Path,
) -> None:
    state = committed(joined(1))
    book = AddressBook(tmp_path / "peers.json", lambda: state)
    for number in (1, 2, 3):
        book.meet(node(number), Address("learnt", number))

    book.keep_only({node(1), node(2)})
    book.save()

    for memory in (book, AddressBook(tmp_path / "peers.json", lambda: state)):
        assert set(memory.known()) == {node(1), node(2)}
        assert memory.places_of(node(3)) == ()


@pytest.mark.parametrize("content", ["", "[]", '{"x": "y"}', '{"x": 1}', "{"])
def test_a_damaged_file_is_only_a_lost_memory(tmp_path: Path, content: str) -> None:
    path = tmp_path / "peers.json"
    path.write_text(content)

    assert AddressBook(path, ClusterState).known() == {}


def test_a_folder_that_cannot_be_written_does_not_stop_the_node(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "gone" / "peers.json", ClusterState)
    book.learn(node(1), Address("a", 1))

    book.save()

    assert book.of(node(1)) == Address("a", 1)


def test_a_full_disk_is_told_of_once_and_tried_again_after_half_a_minute(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    folder = tmp_path / "gone"
    book = AddressBook(folder / "peers.json", ClusterState, clock=lambda: now)
    book.learn(node(1), Address("a", 1))
    for _ in range(1000):
        now += 0.1
        book.save()
    assert len(caplog.records) == 1

    folder.mkdir()
    book.save()
    assert not (folder / "peers.json").exists()
    now += 30.0
    book.save()
    assert set(AddressBook(folder / "peers.json", ClusterState).known()) == {node(1)}


def test_what_is_no_address_is_passed_over_and_the_rest_is_learnt(tmp_path: Path) -> None:
    book = AddressBook(tmp_path / "peers.json", ClusterState)

    book.learn_all({node(1): "no address", node(2): "", node(3): "a:3"})

    assert book.known() == {node(3): Address("a", 3)}


def test_where_a_node_said_it_is_takes_turns_with_what_is_committed(tmp_path: Path) -> None:
    here, there = Address("127.0.0.1", 7001), Address("10.1.0.1", 7000)
    book = AddressBook(tmp_path / "peers.json", lambda: committed(joined(1)))

    assert [book.next_of(node(1)) for _ in range(2)] == [here, here]

    book.meet(node(1), there)

    assert [book.next_of(node(1)) for _ in range(3)] == [here, there, here]
    assert book.of(node(1)) == here
