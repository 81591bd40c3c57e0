"""Nobody is judged dead by one slow heartbeat, and who surely ended is judged so at once."""

from typing import Any

from butterfly_cluster.commands import MarkDown, ReportBroken
from butterfly_cluster.liveness import Signs, cause_of_death, neighbours, witnesses_of
from butterfly_cluster.state import ClusterState
from tests.support.clusters import active, assigned, committed, joined, node

DEAD_AFTER = 3.0
ONE, TWO = frozenset({node(1)}), frozenset({node(1), node(2)})


def dies(silent_seconds: float, **signs: Any) -> bool:
    found = Signs(silent_seconds, **{"others": 2, **signs})
    return cause_of_death(found, DEAD_AFTER) is not None


def test_the_more_agree_on_it_the_sooner_a_silent_member_is_dead() -> None:
    for silent, witnesses in ((1.1, TWO), (3.1, ONE), (6.1, frozenset())):
        assert dies(silent, witnesses=witnesses)
        assert not dies(silent - 0.2, witnesses=witnesses)


def test_the_coordinator_alone_suffices_when_nobody_else_could_tell() -> None:
    assert dies(3.1, others=0)
    assert not dies(2.9, others=0)


def test_its_own_machine_is_a_witness_when_it_says_that_nobody_listens() -> None:
    assert dies(3.1, refused=True)
    assert not dies(2.9, refused=True)


def test_a_process_that_ended_is_dead_at_once_and_only_when_all_three_signs_agree() -> None:
    sure: dict[str, Any] = {"cut_off": True, "witnesses": ONE, "refused": True}

    assert dies(0.0, **sure)
    for missing in sure:
        assert not dies(0.9, **{name: sign for name, sign in sure.items() if name != missing})


def test_a_member_that_is_heard_lives_whatever_others_say() -> None:
    assert not dies(0.3, cut_off=True, witnesses=TWO)


def test_the_cause_names_who_lost_it() -> None:
    cause = cause_of_death(Signs(0.0, True, ONE, 2, refused=True), DEAD_AFTER)

    assert cause is not None
    assert "nobody listens" in cause
    assert node(1)[:8] in cause


def test_who_reports_a_broken_pipeline_speaks_for_its_neighbours() -> None:
    three = committed([*joined(4), assigned(2, [1, 2, 3])], active(3))
    broken = committed([ReportBroken(2, node(1), "wall")], three)
    later = committed([assigned(3, [1, 2, 3])], broken)

    assert neighbours(three, node(2)) == {node(1), node(3)}
    assert neighbours(three, node(4)) == frozenset()
    assert witnesses_of(broken, {}, frozenset()) == {node(2): ONE, node(3): ONE}
    assert witnesses_of(later, {}, frozenset()) == {}


def test_neither_the_silent_nor_the_dead_nor_strangers_are_witnesses() -> None:
    state: ClusterState = committed([MarkDown(node(2), "test")], committed(joined(4)))
    lost_by = {node(n): frozenset({node(4), node(9)}) for n in (1, 2, 3, 7)}

    assert witnesses_of(state, lost_by, frozenset({node(3)})) == {node(4): ONE}
