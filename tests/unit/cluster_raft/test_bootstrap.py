"""The rules of birth: who may found, who asks for promises, and when one waits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_cluster.bootstrap import decide as decide_by
from butterfly_cluster.bootstrap import promises_needed
from butterfly_cluster.founding_messages import (
    Proposal,
    WhoAmI,
    cluster_id_of,
    proposal_from_map,
    verdict_from_map,
    whoami_from_map,
)
from butterfly_cluster.founding_sight import (
    Answers,
    Decision,
    Found,
    FoundingSettings,
    Join,
    Sight,
    Wait,
)
from butterfly_cluster.promises import consider, is_released
from butterfly_core.errors import ConfigError, InvalidValue
from butterfly_core.ids import NodeId

A, B, C, D = (NodeId(digit * 32) for digit in "abcd")
THREE = ("a:1", "b:1", "c:1")


def settings(address: str = "a:1") -> FoundingSettings:
    return FoundingSettings("demo", address)


def decide(
    me: NodeId,
    ours: FoundingSettings,
    answers: Answers,
    seconds: float,
    seeds: tuple[str, ...] = THREE,
) -> Decision:
    return decide_by(me, ours, Sight(seeds, answers, seconds))


def undecided(node: NodeId, seeds: tuple[str, ...] = THREE) -> WhoAmI:
    return WhoAmI(node, "demo", f"{node[0]}:1", seeds=seeds)


def formed(node: NodeId, founders: tuple[NodeId, ...], name: str = "demo") -> WhoAmI:
    return WhoAmI(
        node,
        name,
        f"{node[0]}:1",
        cluster_id=cluster_id_of(name, founders),
        founders=founders,
        voters=founders,
        members={founder: f"{founder[0]}:1" for founder in founders},
    )


def proposal(candidate: NodeId = A, seeds: tuple[str, ...] = THREE, number: str = "1") -> Proposal:
    return Proposal("demo", seeds, (A, B, C), candidate, number)


def test_a_coordinator_without_seeds_founds_alone() -> None:
    alone = FoundingSettings("demo", "a:1", role="coordinator")

    assert decide(A, alone, {}, 0.0, ()) == Found((A,))


def test_a_worker_without_seeds_is_told_so() -> None:
    with pytest.raises(ConfigError, match="seed_nodes is empty"):
        decide(A, settings(), {}, 0.0, ())


def test_a_node_that_is_its_only_seed_founds_alone() -> None:
    assert decide(A, settings(), {"a:1": "refused"}, 0.0, ("a:1",)) == Found((A,))


def test_a_worker_waits_for_its_seed_and_says_why() -> None:
    decision = decide(B, settings("b:1"), {"a:1": "connection refused"}, 0.0, ("a:1",))

    assert isinstance(decision, Wait)
    assert "a:1: connection refused" in decision.reason
    assert "never founds" in decision.reason


def test_a_worker_joins_the_cluster_its_seed_belongs_to() -> None:
    decision = decide(B, settings("b:1"), {"a:1": formed(A, (A,))}, 0.0, ("a:1",))

    assert decision == Join(cluster_id_of("demo", (A,)), (A,), {A: "a:1"}, (A,))


def test_the_smallest_id_asks_for_promises_once_all_are_up() -> None:
    answers = {"a:1": undecided(A), "b:1": undecided(B), "c:1": undecided(C)}

    assert decide(A, settings(), answers, 0.0) == Found((A, B, C))
    assert isinstance(decide(B, settings("b:1"), answers, 0.0), Wait)


def test_a_majority_waits_for_the_rest_for_a_while() -> None:
    answers: Answers = {"a:1": undecided(A), "b:1": undecided(B), "c:1": "no route"}
    early = decide(A, settings(), answers, 1.0)

    assert isinstance(early, Wait)
    assert "4.0 s more" in early.reason
    assert decide(A, settings(), answers, 5.0) == Found((A, B))


def test_a_minority_never_founds() -> None:
    decision = decide(A, settings(), {"a:1": undecided(A), "b:1": "x", "c:1": "y"}, 1e9)

    assert isinstance(decision, Wait)
    assert "1 of 3 founders" in decision.reason


def test_different_lists_are_refused_naming_both() -> None:
    answers = {"a:1": undecided(A), "b:1": undecided(B, ("a:1", "b:1")), "c:1": undecided(C)}
    decision = decide(A, settings(), answers, 9.0)

    assert isinstance(decision, Wait)
    assert decision.alarming
    assert "[a:1, b:1, c:1]" in decision.reason
    assert "[a:1, b:1]" in decision.reason


def test_two_clusters_of_one_name_are_joined_by_nobody() -> None:
    answers = {"a:1": formed(A, (A,)), "b:1": formed(B, (B,))}
    decision = decide(C, settings("c:1"), answers, 9.0)

    assert isinstance(decision, Wait)
    assert decision.alarming
    assert cluster_id_of("demo", (A,)) in decision.reason
    assert cluster_id_of("demo", (B,)) in decision.reason


def test_a_cluster_of_another_name_is_not_joined() -> None:
    decision = decide(C, settings("c:1"), {"a:1": formed(A, (A,), "other")}, 9.0)

    assert isinstance(decision, Wait)
    assert "'other'" in decision.reason


def test_a_cluster_id_that_does_not_fit_its_founders_is_not_joined() -> None:
    lie = WhoAmI(A, "demo", "a:1", cluster_id=cluster_id_of("demo", (B,)), founders=(A,))

    assert isinstance(decide(C, settings("c:1"), {"a:1": lie}, 9.0), Wait)


def test_at_most_so_many_founders_vote() -> None:
    seeds = tuple(f"{digit}:1" for digit in "abcdef0")
    nodes = [NodeId(digit * 32) for digit in "abcdef0"]
    answers = {f"{node[0]}:1": undecided(node, seeds) for node in nodes}

    decision = decide(nodes[-1], settings("0:1"), answers, 0.0, seeds)
    assert decision == Found(tuple(sorted(nodes)[:5]))


def test_a_promise_is_given_once() -> None:
    def asked(what: Proposal) -> bool:
        return consider(
            what, C, settings("c:1"), seeds=THREE, cluster_id=None, promise=proposal(B)
        ).granted

    assert consider(
        proposal(B), C, settings("c:1"), seeds=THREE, cluster_id=None, promise=None
    ).granted
    assert asked(proposal(B))
    assert not asked(proposal(A))
    assert not asked(proposal(B, number="2"))


def test_a_candidate_gives_way_to_a_smaller_id_only() -> None:
    smaller = consider(
        proposal(A), B, settings("b:1"), seeds=THREE, cluster_id=None, promise=proposal(B)
    )
    greater = consider(
        proposal(C), B, settings("b:1"), seeds=THREE, cluster_id=None, promise=proposal(B)
    )

    assert smaller.granted
    assert not greater.granted


def test_a_member_of_a_cluster_promises_nothing() -> None:
    there = cluster_id_of("demo", (B,))
    verdict = consider(proposal(A), B, settings("b:1"), seeds=THREE, cluster_id=there, promise=None)

    assert not verdict.granted
    assert there in verdict.reason


def test_a_proposal_with_another_list_is_refused_naming_both() -> None:
    verdict = consider(
        proposal(A, ("a:1", "b:1")), B, settings("b:1"), seeds=THREE, cluster_id=None, promise=None
    )

    assert not verdict.granted
    assert "[a:1, b:1]" in verdict.reason
    assert "[a:1, b:1, c:1]" in verdict.reason


def test_a_promise_binds_until_the_candidate_dropped_it() -> None:
    held = proposal(B, number="7")
    still = WhoAmI(B, "demo", "b:1", promised_to=B, promised_number="7")
    dropped = WhoAmI(B, "demo", "b:1", promised_to=A, promised_number="8")

    assert not is_released(held, {"b:1": still})
    assert not is_released(held, {"b:1": "no answer"})
    assert not is_released(held, {"b:1": formed(B, (B,))})
    assert is_released(held, {"b:1": dropped})


@given(
    st.sets(st.sampled_from("abcdefg"), min_size=1), st.data(), st.floats(0, 100, allow_nan=False)
)
def test_who_founds_sees_a_majority_and_no_smaller_id(
    founders: set[str], data: st.DataObject, seconds: float
) -> None:
    seeds = tuple(f"{digit}:1" for digit in sorted(founders))
    me = data.draw(st.sampled_from(sorted(founders)))
    up = data.draw(st.sets(st.sampled_from(sorted(founders)))) | {me}
    answers: dict[str, WhoAmI | str] = {
        f"{digit}:1": undecided(NodeId(digit * 32), seeds) if digit in up else "down"
        for digit in founders
    }
    ours = settings(f"{me}:1")
    decision = decide(NodeId(me * 32), ours, answers, seconds, seeds)

    if isinstance(decision, Found):
        assert len(up) >= promises_needed(ours, seeds)
        assert me == min(up)


def test_the_cluster_id_is_the_hash_of_its_first_voters() -> None:
    assert cluster_id_of("demo", (A, B)) == cluster_id_of("demo", (B, A))
    assert len({cluster_id_of(name, who) for name in "xy" for who in ((A,), (A, B))}) == 4


def test_what_is_said_is_read_back() -> None:
    who, what = formed(A, (A, B)), proposal()

    assert whoami_from_map(who.to_map()) == who
    assert whoami_from_map(undecided(D).to_map()) == undecided(D)
    lost = replace(undecided(D), lost_log=True)
    assert whoami_from_map(lost.to_map()) == lost
    assert proposal_from_map(what.to_map()) == what
    assert verdict_from_map({"granted": True, "reason": "x"}).granted


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        *(("lost_log", bad) for bad in (None, 1, "true")),
        *(("node_id", bad) for bad in (None, 5, "x", ["x"])),
        *(("cluster_name", bad) for bad in (None, 5, "x" * 300, ["x"])),
        *(("seeds", bad) for bad in (None, 5, "x", [5], ["x"] * 5000)),
        *(("members", bad) for bad in (None, 5, ["x"], {"x": "a:1"}, {A: 5})),
        *(("founders", bad) for bad in (None, 5, "x", ["x"])),
    ],
)
def test_a_malformed_answer_is_an_invalid_value(name: str, bad: object) -> None:
    with pytest.raises(InvalidValue):
        whoami_from_map({**undecided(A).to_map(), name: bad})
