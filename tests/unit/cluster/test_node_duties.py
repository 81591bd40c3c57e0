from dataclasses import replace

from butterfly_cluster.commands import (
    MarkDown,
    RejectDigests,
    RemoveMember,
    ReportBroken,
    ReportDigests,
    ReportEngine,
    ReportFailure,
    ReportWarm,
)
from butterfly_cluster.lifecycle import (
    Expelled,
    LayersAssigned,
    LayersRejected,
    LayersVerified,
    Node,
    NodeState,
    PipelineComplete,
    QuorumLost,
    Started,
    Unassigned,
    step,
)
from butterfly_cluster.node_duties import Facts, next_event, node_duty
from butterfly_cluster.state import ClusterState
from tests.support.clusters import (
    CAPACITY,
    active,
    assigned,
    committed,
    digests,
    engine,
    joined,
    loading,
    node,
    registered,
    validated,
)

ME = Facts(registered(1), engine=engine(1), capacity=CAPACITY)
HOLDING = replace(ME, loaded_epoch=1, loaded_digests={"layers.0": "d"})


def at(state: NodeState, epoch: int = 1) -> Node:
    return Node(state, epoch)


def test_a_node_registers_until_the_cluster_knows_it_as_it_is() -> None:
    alone = committed(joined(1))

    assert node_duty(ClusterState(), ME) == ME.registration
    assert node_duty(committed([MarkDown(node(1), "test")], alone), ME) == ME.registration
    moved = replace(ME, registration=replace(ME.registration, version="2"))
    assert node_duty(alone, moved) == moved.registration
    assert node_duty(alone, ME) is None


def test_a_node_tells_of_every_run_of_its_engine() -> None:
    state = committed(joined(1))

    gone = replace(ME, engine=None, capacity=None)
    assert node_duty(state, gone) == ReportEngine(node(1), None, None)
    again = replace(ME, engine="next run")
    assert node_duty(state, again) == ReportEngine(node(1), "next run", CAPACITY)


def test_digests_are_reported_once_and_only_for_the_present_epoch() -> None:
    state = loading(2)
    report = ReportDigests(1, node(1), {"layers.0": "d"})

    assert node_duty(state, HOLDING) == report
    assert node_duty(committed([report], state), HOLDING) is None
    assert node_duty(committed([assigned(2, [1, 2])], state), HOLDING) is None


def test_rejected_digests_are_not_reported_again_before_they_were_loaded_again() -> None:
    state = loading(1)
    state = committed([digests(state, 1), RejectDigests(1, node(1), "test")], state)

    assert node_duty(state, HOLDING) is None
    loaded_again = replace(HOLDING, rejections_seen=1)
    assert isinstance(node_duty(state, loaded_again), ReportDigests)


def test_a_failure_is_told_once() -> None:
    state = loading(1)
    failed = replace(ME, failure=ReportFailure(1, node(1), "no such object", file="a"))

    assert node_duty(state, failed) == failed.failure
    assert failed.failure is not None
    assert node_duty(committed([failed.failure], state), failed) is None


def test_the_head_tells_that_the_pipeline_is_warm() -> None:
    warm = replace(HOLDING, warm_epoch=1)

    assert node_duty(validated(2), warm) == ReportWarm(1, node(1))
    assert node_duty(active(2), warm) is None


def test_a_broken_pipeline_is_told_once() -> None:
    broken = replace(HOLDING, broken=ReportBroken(1, node(1), "cut"))
    state = active(2)

    assert node_duty(state, broken) == broken.broken
    assert broken.broken is not None
    assert node_duty(committed([broken.broken], state), broken) is None


def test_a_plan_gives_layers_or_none() -> None:
    state = loading(2)
    third = Facts(registered(3), engine=engine(3))

    assert next_event(at(NodeState.JOINING, 0), state, ME) == LayersAssigned(1, 0, 2)
    assert next_event(at(NodeState.JOINING, 0), state, third) == Unassigned(1)


def test_an_assignment_to_an_earlier_run_of_the_engine_is_not_ours() -> None:
    restarted = replace(ME, engine="next run")

    assert next_event(at(NodeState.JOINING, 0), active(2), restarted) is None


def test_layers_are_verified_when_validation_is_committed() -> None:
    assert next_event(at(NodeState.LOADING), loading(2), HOLDING) is None
    assert next_event(at(NodeState.LOADING), validated(2), HOLDING) == LayersVerified(1)


def test_a_rejection_is_acted_on_once() -> None:
    state = loading(1)
    state = committed([digests(state, 1), RejectDigests(1, node(1), "bad")], state)

    loading_node = at(NodeState.LOADING)
    event = next_event(loading_node, state, ME)
    assert event == LayersRejected(1, "bad", 1)
    obeying, _ = step(loading_node, event)
    assert next_event(obeying, state, ME) is None


def test_a_node_serves_while_the_pipeline_stands_and_nothing_speaks_against_it() -> None:
    state = active(2)
    cut_off = replace(HOLDING, problem="no coordinator heard")

    assert next_event(at(NodeState.READY), state, HOLDING) == PipelineComplete(1)
    assert next_event(at(NodeState.READY), state, cut_off) is None
    assert next_event(at(NodeState.OPERATIONAL), state, HOLDING) is None
    lost = next_event(at(NodeState.OPERATIONAL), state, cut_off)
    assert lost == QuorumLost("no coordinator heard")
    broken = committed([MarkDown(node(2), "test")], state)
    assert isinstance(next_event(at(NodeState.OPERATIONAL), broken, HOLDING), QuorumLost)


def test_a_node_that_the_cluster_removed_is_expelled_and_a_joining_one_is_not() -> None:
    state = committed([RemoveMember(node(1), "test")], active(2))

    assert isinstance(next_event(at(NodeState.OPERATIONAL), state, HOLDING), Expelled)
    assert next_event(at(NodeState.JOINING), state, HOLDING) is None


def test_a_cold_node_follows_nothing() -> None:
    assert next_event(at(NodeState.COLD, 0), active(2), ME) is None


def test_an_expelled_node_starts_again_and_a_leaving_one_does_not() -> None:
    assert next_event(at(NodeState.COLD), active(2), ME) == Started()
    assert next_event(at(NodeState.COLD), active(2), replace(ME, draining=True)) is None
