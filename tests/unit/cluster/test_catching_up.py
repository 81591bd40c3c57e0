from collections.abc import Sequence

from butterfly_cluster.catching_up import CatchingUp
from butterfly_core.ids import NodeId
from tests.support.clusters import node

HEARTBEAT = 0.05


def looked(track: Sequence[tuple[float, int, int | None]]) -> frozenset[NodeId]:
    """Node 2 after these looks: time, commit index, what node 2 holds."""
    catching_up, found = CatchingUp(HEARTBEAT), frozenset[NodeId]()
    for now, commit_index, matched in track:
        found = catching_up.look(now, commit_index, {node(2): matched})
    return found


def test_a_learner_is_caught_up_after_two_seconds_within_a_heartbeat_of_the_commit_index() -> None:
    steady = [(tick / 10, 100 + tick, 100 + tick) for tick in range(21)]

    assert looked(steady[:20]) == frozenset()
    assert looked(steady) == {node(2)}


def test_a_learner_that_falls_behind_once_or_is_cut_off_begins_anew() -> None:
    for odd in (None, 50):
        track: list[tuple[float, int, int | None]] = [(t / 10, 100, 100) for t in range(30)]
        track[20] = (2.0, 100, odd)
        assert looked(track[:20]) == frozenset()
        assert looked(track) == frozenset()
        assert looked([*track, *((t / 10, 100, 100) for t in range(30, 43))]) == {node(2)}


def test_a_learner_that_is_always_two_looks_behind_never_votes() -> None:
    assert looked([(t / 10, 10 * t, 10 * t - 20) for t in range(60)]) == frozenset()


def test_after_a_look_away_nothing_is_known() -> None:
    assert looked([(0.0, 5, 5), (0.5, 5, 5), (3.0, 5, 5)]) == frozenset()
