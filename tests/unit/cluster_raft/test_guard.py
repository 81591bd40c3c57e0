"""Each rule of the guard against the schedule that breaks stock pysyncobj."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from butterfly_cluster.journal import Entry
from butterfly_cluster.membership import MEMBERSHIP, VoterChange
from butterfly_cluster.raft_insides import FOLLOWER, LEADER
from butterfly_cluster.raft_log import Accepted, Mismatch, accept_entries, install_snapshot
from butterfly_cluster.raft_sync import FAILURES
from butterfly_cluster.raft_timing import LAN
from butterfly_cluster.snapshot import SNAPSHOT_NAME, Snapshot
from butterfly_core.errors import ProtocolViolation
from butterfly_core.ids import NodeId
from tests.unit.cluster_raft.by_hand import UNREADABLE, Table, texts


@pytest.fixture
def five(tmp_path: Path) -> Iterator[Table]:
    table = Table(tmp_path, 5)
    yield table
    table.close()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Table]:
    table = Table(tmp_path, 3, learners=1)
    yield table
    table.close()


def led(table: Table) -> tuple[NodeId, ...]:
    leader, *others = table.ids
    table.elect(leader, *others[:2])
    table.exchange(leader, *others)
    return (leader, *others)


def append(table: Table, target: NodeId, **fields: Any) -> dict[str, Any]:
    term = table.core(target).term
    message = {"type": "append_entries", "term": term, "commit_index": 1, "sender_term": term}
    return {**message, **fields}


def test_a_late_acknowledgement_of_an_older_term_counts_for_nothing(five: Table) -> None:
    """Stock pysyncobj commits here what two of five hold (audit, hazard 4)."""
    a, b, c, d, e = led(five)
    for number in range(6):
        five.write(a, f"old {number}")
    five.deliver("append_entries", source=a, target=c)
    five.tick(c)
    late = five.hold_back("next_node_idx", c, a)
    assert late
    five.mail.clear()
    five.elect(b, d, e)
    five.exchange(b, a, c)
    five.elect(a, d, e)
    answers = [five.write(a, f"new {number}") for number in range(4)]
    five.exchange(a, d)
    five.mail += late
    five.deliver("next_node_idx", source=c, target=a)
    five.tick(a)
    five.tick(a)

    assert five.core(a).role == LEADER
    assert not any(answers)
    assert five.guards[a].dropped["term"] >= 1


def test_entries_that_match_are_not_cut_by_a_late_shorter_message(three: Table) -> None:
    leader, follower, *_ = led(three)
    for number in range(4):
        three.write(leader, str(number))
    three.exchange(leader, follower)
    before = list(three.core(follower).journal.entries)
    old = before[2]
    late = append(three, follower, prevLogIdx=before[1].log_index, prevLogTerm=before[1].term)
    three.guards[follower].receive(leader, {**late, "entries": [old]})

    assert three.core(follower).journal.entries == before


def test_only_what_was_compared_is_acknowledged_and_committed(three: Table) -> None:
    leader, follower, *_ = led(three)
    core = three.core(follower)
    committed = core.commit_index
    core.journal.append(core.journal.entries[-1]._replace(log_index=core.last_index + 1, term=0))
    heartbeat = append(three, follower, prevLogIdx=committed, prevLogTerm=core.term, entries=[])
    three.guards[follower].receive(leader, {**heartbeat, "commit_index": 99})
    three.tick(follower)
    (answer,) = [message for _, _, message in three.mail if message["type"] == "next_node_idx"]

    assert answer["next_node_idx"] == committed + 1
    assert core.commit_index == committed


def test_a_conflict_replaces_the_tail_and_a_hole_asks_for_more(three: Table) -> None:
    _, follower, *_ = led(three)
    core = three.core(follower)
    last = core.journal.entries[-1]
    uncommitted = last._replace(log_index=last.log_index + 1, command=b'\0"lost"')
    core.journal.append(uncommitted)
    newer = uncommitted._replace(term=last.term + 1, command=b'\0"kept"')

    hole = accept_entries(core, last.log_index + 5, last.term, [])
    other_term = accept_entries(core, uncommitted.log_index, last.term + 7, [])
    taken = accept_entries(core, last.log_index, last.term, [newer])
    assert hole == Mismatch(last.log_index + 2)
    assert other_term == Mismatch(core.commit_index + 1)
    assert taken == Accepted(newer.log_index)
    assert texts(core)[-1] == b'\0"kept"'
    assert core.last_index == newer.log_index


def test_nobody_may_contradict_what_is_committed(three: Table) -> None:
    leader, follower, *_ = led(three)
    three.write(leader, "kept")
    three.exchange(leader, follower)
    core = three.core(follower)
    before = list(core.journal.entries)
    contrary = before[-1]._replace(term=core.term + 1, command=b'\0"other"')

    with pytest.raises(ProtocolViolation, match="contradicts the entry"):
        accept_entries(core, before[-2].log_index, before[-2].term, [contrary])
    with pytest.raises(ProtocolViolation, match="contradicts the entry"):
        accept_entries(core, core.commit_index, 77, [])
    assert core.journal.entries == before


def test_a_piece_of_a_snapshot_commits_nothing(three: Table) -> None:
    """Stock pysyncobj moves the commit index with the first piece (audit, hazard 2)."""
    leader, follower, *_ = led(three)
    core = three.core(follower)
    stale = core.journal.entries[-1]._replace(log_index=core.last_index + 1)
    core.journal.append(stale)
    committed = core.commit_index
    piece = append(three, follower, commit_index=50, serialized=[b"part", True, False])
    three.guards[follower].receive(leader, piece)
    three.guards[follower].receive(leader, {**piece, "serialized": None})

    assert core.commit_index == committed


def test_an_old_snapshot_does_not_turn_the_state_back(three: Table) -> None:
    leader, follower, *_ = led(three)
    for number in range(5):
        three.write(leader, str(number))
    three.exchange(leader, follower)
    three.core(leader).compact_soon()
    three.exchange(leader, follower)
    piece = three.core(leader).shelf.getTransmissionData("x")
    assert piece is not None
    core, applied = three.core(follower), list(three.applied[follower])
    outcome = install_snapshot(core, piece[0])

    assert outcome.index <= core.applied_index
    assert three.applied[follower] == applied


def test_a_damaged_snapshot_of_a_leader_is_refused(three: Table) -> None:
    with pytest.raises(ProtocolViolation, match="a snapshot from the leader"):
        install_snapshot(three.core(three.ids[0]), b"garbage")


def test_a_snapshot_whose_state_cannot_be_read_is_refused_before_it_is_on_the_disk(
    three: Table, tmp_path: Path
) -> None:
    _, follower, *_ = led(three)
    core = three.core(follower)
    before, applied = list(core.journal.entries), core.applied_index
    previous, last = Entry(b"\1", 90, core.term), Entry(b"\1", 91, core.term)
    snapshot = Snapshot(UNREADABLE, previous, last, core.voters)

    with pytest.raises(ProtocolViolation, match="of another version"):
        install_snapshot(core, snapshot.encode())

    assert not (tmp_path / follower / SNAPSHOT_NAME).exists()
    assert (core.journal.entries, core.applied_index) == (before, applied)


def test_a_change_of_voters_is_not_forwarded_when_the_lead_was_lost_before_it_was_taken(
    three: Table,
) -> None:
    leader, follower, *_, learner = led(three)
    core, answers = three.core(leader), list[tuple[int | None, int]]()
    change = VoterChange("add", learner).encode()
    core.propose(change, lambda *given: answers.append(given), MEMBERSHIP)
    heartbeat = {"type": "append_entries", "commit_index": core.commit_index, "entries": []}
    three.guards[leader].receive(
        follower,
        {
            **heartbeat,
            "term": core.term + 1,
            "sender_term": core.term + 1,
            "prevLogIdx": core.last_index,
            "prevLogTerm": core.last_term,
        },
    )
    three.mail.clear()
    three.tick(leader)

    assert core.leader == follower
    assert answers == [(None, FAILURES.NOT_LEADER)]
    assert not [m for _, _, m in three.mail if m["type"] == "apply_command"]


def vote_request(table: Table, target: NodeId, **fields: Any) -> dict[str, Any]:
    core = table.core(target)
    return {
        "type": "request_vote",
        "term": core.term + 1,
        "last_log_index": core.last_index,
        "last_log_term": core.last_term,
        "transfer": False,
        "sender_term": core.term + 1,
        **fields,
    }


def test_nobody_votes_while_a_leader_is_heard(three: Table) -> None:
    leader, follower, other, _ = led(three)
    three.guards[follower].receive(other, vote_request(three, follower))
    assert three.core(follower).term == three.core(leader).term
    assert three.guards[follower].dropped["sticky"] == 1

    three.now += 1.0
    three.guards[follower].receive(other, vote_request(three, follower))
    assert [m["type"] for _, _, m in three.mail] == ["response_vote"]


def test_a_stranger_does_not_raise_the_term(three: Table) -> None:
    """On a stock observer connection this deposes the leader (audit, hazard 8)."""
    _, follower, _, learner = led(three)
    three.now += 10
    term = three.core(follower).term
    three.guards[follower].receive(learner, vote_request(three, follower, term=10**6))

    assert three.core(follower).term == term
    assert three.guards[follower].dropped["member"] == 1


def test_a_vote_counts_once_and_of_voters_only(five: Table) -> None:
    a, b, *_ = five.ids
    core = five.core(a)
    five.pass_by(10)
    core.election_deadline = 0.0
    five.core(a).tick()
    vote = {"type": "response_vote", "term": core.term, "sender_term": core.term}
    for _ in range(3):
        five.guards[a].receive(b, vote)
    five.guards[a].receive(NodeId("f" * 32), vote)

    assert core.role != LEADER
    assert five.guards[a].dropped == {"vote1": 2, "member": 1}


def test_a_leader_of_an_old_term_is_told_and_steps_down(five: Table) -> None:
    a, b, _, d, e = led(five)
    old = append(five, a, prevLogIdx=1, prevLogTerm=0, entries=[])
    five.elect(b, d, e)
    five.guards[d].receive(a, old)
    five.deliver("stale", source=d, target=a)

    assert five.core(a).role == FOLLOWER
    assert five.core(a).term == five.core(b).term


def test_without_a_majority_no_term_is_raised(three: Table) -> None:
    me = three.ids[0]
    for _ in range(50):
        three.tick(me, 0.5)

    assert three.core(me).term == 0
    assert any(message["type"] == "pre_vote" for _, _, message in three.mail)


def test_a_vote_leaves_after_it_is_on_the_disk(three: Table) -> None:
    _, follower, other, _ = led(three)
    three.now += 1.0
    three.guards[follower].receive(other, vote_request(three, follower))
    journal = three.core(follower).journal

    assert not journal.dirty
    assert (journal.term, journal.vote) == (three.core(follower).term, other)


def test_acknowledgements_leave_together_after_one_sync(three: Table) -> None:
    leader, follower, *_ = led(three)
    for number in range(10):
        three.write(leader, str(number))
    three.deliver("append_entries", source=leader, target=follower)
    assert not [m for _, _, m in three.mail if m["type"] == "next_node_idx"]
    syncs = three.core(follower).journal.syncs
    three.tick(follower)

    assert three.core(follower).journal.syncs == syncs + 1
    assert len([m for _, _, m in three.mail if m["type"] == "next_node_idx"]) == 1


def test_a_leader_counts_itself_only_for_what_it_synced(three: Table) -> None:
    leader, follower, *_ = led(three)
    answers = three.write(leader, "x")
    assert three.core(leader).journal.dirty
    three.deliver("append_entries", source=leader, target=follower)
    three.tick(follower)
    three.deliver("next_node_idx", source=follower, target=leader)
    assert not answers
    three.tick(leader)

    assert not three.core(leader).journal.dirty
    assert [index for index, _ in answers] == [three.core(leader).commit_index]


def test_a_claim_beyond_the_leaders_log_is_dropped(three: Table) -> None:
    leader, follower, *_ = led(three)
    term = three.core(leader).term
    claim = {"type": "next_node_idx", "next_node_idx": 999, "reset": False, "success": True}
    three.guards[leader].receive(follower, {**claim, "sender_term": term})

    assert three.guards[leader].dropped["beyond_log"] == 1
    assert three.core(leader).match_index(follower) < 999


def test_a_late_go_back_does_not_go_below_what_is_matched(three: Table) -> None:
    leader, follower, *_ = led(three)
    three.write(leader, "x")
    three.exchange(leader, follower)
    matched = three.core(leader).match_index(follower)
    claim = {"type": "next_node_idx", "next_node_idx": 2, "reset": True, "success": False}
    term = three.core(leader).term
    three.guards[leader].receive(follower, {**claim, "sender_term": term})

    assert three.core(leader).next_index(follower) == matched + 1
    assert three.guards[leader].dropped["reset"] == 1


def test_a_leader_that_wakes_up_believes_no_word_from_before_its_pause(five: Table) -> None:
    """Else it would heartbeat to who is cut off with it, and that one would go on admitting."""
    a, b, c, *_ = led(five)
    five.tick(a, LAN.append_seconds * 1.1)
    for follower in (b, c):
        five.deliver(source=a, target=follower)
        five.tick(follower)
    five.now += LAN.fallback_seconds + 0.1
    five.deliver("next_node_idx", target=a)
    five.mail.clear()
    five.tick(a)

    assert five.core(a).role == FOLLOWER
    assert not [envelope for envelope in five.mail if envelope[2]["type"] == "append_entries"]


def test_what_a_leader_reads_just_after_its_first_tick_may_have_waited_too(five: Table) -> None:
    a, b, c, *_ = led(five)
    pause = 0.8 * LAN.fallback_seconds
    five.tick(a, LAN.append_seconds * 1.1)
    for follower in (b, c):
        five.deliver(source=a, target=follower)
        five.tick(follower)
    five.now += pause
    five.tick(a)
    five.deliver("next_node_idx", target=a)

    assert five.guards[a].seconds_since_leader_heard() >= pause


def test_a_follower_that_wakes_up_takes_no_old_heartbeat_for_a_fresh_one(five: Table) -> None:
    a, b, *_ = led(five)
    five.tick(a, LAN.append_seconds * 1.1)
    heartbeats = list(five.mail)
    five.now += 2.0
    five.deliver("append_entries", source=a, target=b)
    assert five.guards[b].seconds_since_leader_heard() >= 2.0

    five.pass_by(1.0)
    five.mail[:] = heartbeats
    five.deliver("append_entries", source=a, target=b)

    assert five.guards[b].seconds_since_leader_heard() == 0.0


def test_votes_that_waited_for_a_paused_candidate_make_no_leader(five: Table) -> None:
    a, b, c, *_ = five.ids
    five.pass_by(10)
    five.core(a).election_deadline = 0.0
    five.core(a).tick()
    vote = {"type": "response_vote", "term": five.core(a).term, "sender_term": five.core(a).term}
    five.now += 1.0
    for voter in (b, c):
        five.guards[a].receive(voter, vote)

    assert five.core(a).role != LEADER
    assert five.guards[a].dropped["late"] == 2
