"""One coordinator at a time gives orders, in the order of their terms, whoever hands them in."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from butterfly_cluster.commands import (
    ActAsCoordinator,
    Command,
    DescribeModel,
    MarkDown,
    Order,
    Ordered,
    PassValidation,
    RejectDigests,
    RemoveMember,
    ReportPlanProblem,
    decode_command,
)
from butterfly_cluster.state import Acting, ClusterState, decode_state, encode_state
from tests.support.clusters import active, assigned, committed, node, registered, spec

OLD, NEW = Acting(1, node(1)), Acting(2, node(2))
ORDERS: tuple[Order, ...] = (
    MarkDown(node(3), "test"),
    RemoveMember(node(3), "test"),
    DescribeModel(spec("r2"), {}),
    assigned(2, [1, 2]),
    ReportPlanProblem("test"),
    RejectDigests(1, node(1), "test"),
    PassValidation(1, "root"),
)
actings = st.builds(
    lambda term, number: Acting(term, node(number)), st.integers(1, 5), st.integers(1, 3)
)


def unchanged(before: ClusterState, command: Command) -> bool:
    after = committed([command], before)
    return after == replace(before, index=after.index)


def test_the_wish_of_an_old_coordinator_that_wakes_up_changes_nothing() -> None:
    paused = committed([ActAsCoordinator(OLD)], active(3))
    now = committed([ActAsCoordinator(NEW)], paused)

    for order in ORDERS:
        assert unchanged(now, Ordered(OLD, order))
    assert unchanged(now, ActAsCoordinator(OLD))
    assert not unchanged(paused, Ordered(OLD, MarkDown(node(3), "test")))
    assert not unchanged(now, Ordered(NEW, MarkDown(node(3), "test")))


def test_neither_another_node_of_the_term_nor_nobody_gives_orders() -> None:
    state = committed([ActAsCoordinator(NEW)], active(3))

    assert unchanged(state, ActAsCoordinator(Acting(2, node(3))))
    for order in ORDERS:
        assert unchanged(state, Ordered(Acting(2, node(3)), order))
        assert unchanged(state, Ordered(Acting(3, node(2)), order))
        if not isinstance(order, RemoveMember):
            assert unchanged(state, order)


def test_nobody_gives_orders_before_it_is_committed_that_somebody_acts() -> None:
    assert unchanged(active(3), Ordered(OLD, MarkDown(node(3), "test")))


def test_a_node_takes_itself_out_whoever_acts() -> None:
    state = committed([ActAsCoordinator(NEW)], active(3))

    assert node(3) not in committed([RemoveMember(node(3), "leaves")], state).members
    assert node(4) in committed([registered(4)], state).members


@given(st.lists(actings, max_size=12))
def test_the_term_of_who_acts_only_rises_and_has_one_node(history: list[Acting]) -> None:
    state, acted = ClusterState(), dict[int, set[str]]()
    for by in history:
        before, state = state, committed([ActAsCoordinator(by)], state)
        assert state.acting is not None
        assert before.acting is None or state.acting.term >= before.acting.term
        acted.setdefault(state.acting.term, set()).add(state.acting.node_id)
    assert all(len(nodes) == 1 for nodes in acted.values())


def test_logs_and_snapshots_from_before_there_were_names_still_read() -> None:
    old = encode_state(active(2)).replace(b'"acting":null,', b"")
    command = b'{"node_id":"%s","reason":"silent","kind":"mark_down"}' % node(2).encode()

    assert b"acting" not in old
    state = decode_state(old)
    assert state == active(2)
    assert not committed([decode_command(command)], state).members[node(2)].alive
