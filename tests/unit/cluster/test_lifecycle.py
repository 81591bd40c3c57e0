from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_cluster.lifecycle import (
    PHASES_OF_STATE,
    TRANSITIONS,
    ConnectPipeline,
    DrainRequested,
    DropLayers,
    Effect,
    EngineDied,
    Event,
    Expelled,
    HoldLayers,
    JoinCluster,
    LayersAssigned,
    LayersRejected,
    LayersVerified,
    LeaveCluster,
    Node,
    NodeState,
    Phase,
    PipelineComplete,
    QuorumLost,
    ReloadLayers,
    RestartEngine,
    Serve,
    Started,
    StopAdmitting,
    Unassigned,
    step,
)
from butterfly_core.errors import IllegalTransition

epochs = st.integers(1, 5)
events: st.SearchStrategy[Event] = st.one_of(
    st.just(Started()),
    st.builds(LayersAssigned, epochs, st.just(0), st.just(8)),
    st.builds(Unassigned, epochs),
    st.builds(LayersRejected, epochs, st.just("test")),
    st.builds(LayersVerified, epochs),
    st.builds(PipelineComplete, epochs),
    st.just(QuorumLost("test")),
    st.just(EngineDied("test")),
    st.just(Expelled("test")),
    st.just(DrainRequested()),
)


def possible(node: Node) -> list[Event]:
    """What may happen to it now, more often what takes it further."""
    now, following = node.epoch, node.epoch + 1
    onward: list[Event] = [
        Started(),
        LayersAssigned(following, 0, 8),
        LayersVerified(now),
        PipelineComplete(now),
    ]
    back: list[Event] = [
        Unassigned(following),
        LayersRejected(now, "test", node.rejections + 1),
        QuorumLost("test"),
        EngineDied("test"),
        Expelled("test"),
        DrainRequested(),
    ]
    return [event for event in 6 * onward + back if type(event) in TRANSITIONS[node.state]]


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Anything may be told at any time, but mostly what moves the node."""
    node, history = Node(), list[Event]()
    for _ in range(draw(st.integers(0, 30))):
        moves = draw(st.integers(0, 3)) > 0
        history.append(draw(st.sampled_from(possible(node)) if moves else events))
        with suppress(IllegalTransition):
            node, _ = step(node, history[-1])
    return history


def test_a_node_walks_from_cold_to_operational() -> None:
    node = Node()
    seen: list[Effect] = []
    for event in (Started(), LayersAssigned(1, 0, 8), LayersVerified(1), PipelineComplete(1)):
        node, effects = step(node, event)
        seen += effects

    assert node == Node(NodeState.OPERATIONAL, epoch=1)
    assert seen == [JoinCluster(), HoldLayers(1, 0, 8), ConnectPipeline(1), Serve(1)]


@pytest.mark.parametrize(
    ("before", "event", "after", "effects"),
    [
        ("OPERATIONAL", QuorumLost("x"), "READY", (StopAdmitting("x"),)),
        ("OPERATIONAL", EngineDied("x"), "JOINING", (RestartEngine("x"),)),
        ("OPERATIONAL", LayersAssigned(3, 0, 4), "LOADING", (HoldLayers(3, 0, 4),)),
        ("OPERATIONAL", Expelled("x"), "COLD", (DropLayers("x"),)),
        ("OPERATIONAL", DrainRequested(), "COLD", (LeaveCluster(),)),
        ("LOADING", LayersRejected(2, "x", 1), "LOADING", (ReloadLayers(2, "x", 1),)),
        ("READY", LayersAssigned(3, 0, 4), "LOADING", (HoldLayers(3, 0, 4),)),
    ],
)
def test_every_failure_has_an_edge_back(
    before: str, event: Event, after: str, effects: tuple[Effect, ...]
) -> None:
    node, seen = step(Node(NodeState(before), epoch=2), event)

    assert (node.state.value, seen) == (after, effects)


def test_news_about_an_older_assignment_changes_nothing() -> None:
    loading = Node(NodeState.LOADING, epoch=2)

    assert step(loading, LayersVerified(epoch=1)) == (loading, ())
    assert step(loading, LayersAssigned(2, 0, 8)) == (loading, ())


def test_a_cold_node_cannot_be_given_layers() -> None:
    with pytest.raises(IllegalTransition, match="COLD"):
        step(Node(), LayersAssigned(1, 0, 8))


def test_a_drained_node_never_starts_again_by_itself() -> None:
    assert set(TRANSITIONS[NodeState.COLD]) == {Started, DrainRequested, EngineDied}


@given(histories())
def test_a_node_never_serves_layers_it_has_not_verified(history: list[Event]) -> None:
    node = Node()
    verified = 0
    for event in history:
        try:
            node, effects = step(node, event)
        except IllegalTransition:
            continue
        for effect in effects:
            if isinstance(effect, ConnectPipeline):
                verified = effect.epoch
            elif isinstance(effect, HoldLayers | ReloadLayers | DropLayers | RestartEngine):
                verified = 0
            assert not isinstance(effect, Serve) or 0 < effect.epoch == verified


@given(histories())
def test_the_epoch_of_a_node_only_rises(history: list[Event]) -> None:
    node = Node()
    for event in history:
        before = node.epoch
        try:
            node, _ = step(node, event)
        except IllegalTransition:
            continue
        assert node.epoch >= before


def test_every_state_knows_its_phases_and_every_phase_has_a_state() -> None:
    assert set(PHASES_OF_STATE) == set(NodeState)
    assert {phase for phases in PHASES_OF_STATE.values() for phase in phases} == set(Phase)
