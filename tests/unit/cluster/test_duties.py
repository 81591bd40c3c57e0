from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from butterfly_cluster.commands import (
    ActAsCoordinator,
    DescribeModel,
    MarkDown,
    PassValidation,
    RejectDigests,
    RemoveMember,
    Repin,
    ReportBroken,
    ReportDigests,
    ReportEngine,
    ReportFailure,
    ReportPlanProblem,
)
from butterfly_cluster.duties import (
    Act,
    Duty,
    MakePlan,
    Observations,
    Policy,
    Promote,
    Propose,
    coordinator_duty,
)
from butterfly_cluster.state import Acting, ClusterState
from butterfly_core.layers import stage_parts
from tests.support.clusters import (
    CAPACITY,
    LAYERS,
    active,
    assigned,
    committed,
    digests,
    engine,
    joined,
    loading,
    node,
    registered,
    spec,
)

POLICY = Policy(quorum_size=2)
MODEL = DescribeModel(spec(), {})


def root_of(part_digests: Mapping[str, str]) -> str:
    return f"root of {len(part_digests)}"


def seen(**changes: Any) -> Observations:
    calm = Observations(
        silent_seconds={},
        settled_seconds=100.0,
        gathered_seconds=100.0,
        broken_seconds=50.0,
        voters=frozenset({node(1)}),
        me=node(1),
        term=1,
        caught_up=frozenset(node(number) for number in range(1, 10)),
        described=MODEL,
        root_of=root_of,
    )
    return replace(calm, **changes)


def duty(state: ClusterState, policy: Policy = POLICY, **changes: Any) -> Duty | None:
    """Of a node that acts already."""
    look = seen(**changes)
    state = committed([ActAsCoordinator(Acting(look.term, look.me))], state)
    return coordinator_duty(state, look, policy)


def planned(found: Duty | None) -> list[str]:
    assert isinstance(found, MakePlan)
    return [machine.node_id for machine in found.machines]


def test_a_new_leader_gives_no_order_before_it_is_committed_that_it_acts() -> None:
    fresh = coordinator_duty(active(2), seen(silent_seconds={node(2): 99.0}), POLICY)
    again = duty(active(2), term=1)
    later = coordinator_duty(
        committed([ActAsCoordinator(Acting(1, node(1)))], active(2)), seen(term=2), POLICY
    )

    assert fresh == Act(ActAsCoordinator(Acting(1, node(1))))
    assert again is None
    assert later == Act(ActAsCoordinator(Acting(2, node(1))))


def test_the_dead_are_marked_first_and_the_coordinator_never_buries_itself() -> None:
    state = active(2)

    found = duty(state, silent_seconds={node(1): 99.0, node(2): 99.0})

    assert isinstance(found, Propose)
    assert isinstance(found.command, MarkDown)
    assert found.command.node_id == node(2)


def test_the_model_is_described_until_it_is_proven() -> None:
    other = DescribeModel(spec("r2"), {})

    assert duty(committed(joined(1))) == Propose(MODEL)
    assert duty(loading(2), described=other) == Propose(other)
    assert duty(active(2), described=other) is None


def test_the_first_plan_waits_for_the_quorum_and_for_calm() -> None:
    one, two = (committed([*joined(n), MODEL]) for n in (1, 2))

    assert duty(one) is None
    assert duty(two, gathered_seconds=0.1) is None
    assert planned(duty(two, settled_seconds=0.1)) == [node(1), node(2)]


def test_the_first_plan_waits_a_while_for_engines_that_still_start() -> None:
    state = committed([*joined(2), registered(3), MODEL])
    three = frozenset(node(n) for n in (1, 2, 3))

    assert duty(state, voters=three, settled_seconds=5.0) is None
    assert planned(duty(state, voters=three, settled_seconds=100.0)) == [node(1), node(2)]


def test_nothing_is_planned_while_a_member_is_in_doubt() -> None:
    state = committed([ReportBroken(1, node(1), "test")], active(2))

    assert duty(state, silent_seconds={node(2): 2.0}) is None
    assert planned(duty(state)) == [node(1), node(2)]


def test_a_broken_pipeline_is_planned_again_only_with_those_heard_since_it_broke() -> None:
    state = committed([ReportBroken(1, node(1), "test")], active(2))

    assert duty(state, broken_seconds=0.1, silent_seconds={node(2): 0.2}) is None
    assert planned(duty(state, broken_seconds=0.3, silent_seconds={node(2): 0.2}))


def test_a_broken_assignment_is_planned_again_at_once() -> None:
    state = committed([MarkDown(node(3), "test")], active(3))
    three = frozenset(node(n) for n in (1, 2, 3))

    assert planned(duty(state, voters=three, settled_seconds=0.0)) == [node(1), node(2)]


def test_an_engine_that_died_is_waited_for_before_it_is_planned_without() -> None:
    state = committed([ReportEngine(node(2), None, None)], active(2))
    back = committed([ReportEngine(node(2), "next run", CAPACITY)], state)

    assert duty(state, settled_seconds=5.0) is None
    assert planned(duty(back, settled_seconds=0.0)) == [node(1), node(2)]


def test_a_newcomer_waits_until_the_cluster_is_idle() -> None:
    state = committed(joined(3), active(2))
    three = frozenset(node(n) for n in (1, 2, 3))

    assert duty(state, voters=three, active_requests=1) is None
    assert duty(state, voters=three, settled_seconds=5.0) is None
    off = replace(POLICY, rebalance_when_idle=False)
    assert duty(state, voters=three, policy=off) is None
    assert planned(duty(state, voters=three)) == [node(1), node(2), node(3)]


def test_a_machine_that_was_left_out_on_purpose_causes_no_other_plan() -> None:
    plan = assigned(2, [1])
    considered = replace(plan, considered=tuple(f"engine-{n}" for n in (1, 2)))
    state = committed([considered], active(2))

    assert duty(state) is None


def test_validation_passes_when_every_stage_agrees_with_the_manifest() -> None:
    state = loading(2)
    half = committed([digests(state, 1)], state)
    whole = committed([digests(state, 2)], half)

    assert duty(half) is None
    assert duty(whole) == Propose(PassValidation(1, "root of 7"))


def test_a_digest_that_is_not_the_manifests_is_rejected_by_name() -> None:
    state = loading(2)
    state = replace(state, part_digests={"layers.3": "what it must be"})
    state = committed([digests(state, 1), digests(state, 2)], state)

    found = duty(state)

    assert isinstance(found, Propose)
    assert isinstance(found.command, RejectDigests)
    assert found.command.node_id == node(2)
    assert "layers.3" in found.command.reason


def test_a_root_that_is_not_the_pinned_one_is_told_once() -> None:
    state = replace(loading(1), pinned_root="agreed")
    state = committed([digests(state, 1)], state)
    policy = replace(POLICY, quorum_size=1)

    found = duty(state, policy)

    assert isinstance(found, Propose)
    assert isinstance(found.command, ReportPlanProblem)
    assert "agreed" in str(found.command.message)
    assert duty(committed([found.command], state), policy) is None


def test_a_root_that_was_given_up_makes_a_new_plan_of_the_model_as_it_is_now() -> None:
    state = committed([Repin("root")], active(2))
    changed = DescribeModel(spec("r2"), {})

    assert planned(duty(state, described=MODEL)) == [node(1), node(2)]
    assert duty(state, described=changed) == Propose(changed)
    assert duty(state, described=MODEL, may_plan=False, root_of=root_of) is None


def test_two_nodes_that_differ_load_again_in_turn_while_nothing_says_who_is_right() -> None:
    tied = replace(spec(), tied=True)
    state = replace(loading(2), model=tied)
    assert state.assignment is not None
    for turn in (2, 1, 2, 1):
        reports = [
            ReportDigests(
                1,
                stage.node_id,
                {
                    part: f"d-{part}" if part != "embed" else f"embed of {stage.node_id}"
                    for part in stage_parts(stage.layers, LAYERS, tied=True)
                },
            )
            for stage in state.assignment.stages
        ]
        state = committed(reports, state)
        found = duty(state)

        assert isinstance(found, Propose)
        assert isinstance(found.command, RejectDigests)
        assert found.command.node_id == node(turn)
        state = committed([found.command], state)


def test_after_a_proof_without_a_manifest_what_differs_later_is_rejected_by_name() -> None:
    state = committed([assigned(2, [1, 2])], active(2))
    state = committed([digests(state, 1), digests(state, 2, salt=" changed")], state)

    found = duty(state)

    assert isinstance(found, Propose)
    assert isinstance(found.command, RejectDigests)
    assert found.command.node_id == node(2)


def test_a_pipeline_that_never_stands_is_tried_less_and_less_often() -> None:
    state = active(2)
    for epoch in (2, 3, 4):
        state = committed([assigned(epoch, [1, 2]), ReportBroken(epoch, node(1), "wall")], state)

    assert duty(state, broken_seconds=5.0) is None
    assert planned(duty(state, broken_seconds=8.5))
    assert state.broken_reason == "wall"


def test_a_load_under_way_is_not_given_up_for_a_newcomer_unless_it_fails() -> None:
    state = committed(joined(3), loading(2))
    three = frozenset(node(n) for n in (1, 2, 3))
    failing = committed([ReportFailure(1, node(2), "no such object")], state)

    assert duty(state, voters=three) is None
    assert planned(duty(failing, voters=three)) == [node(1), node(2), node(3)]
    tried = frozenset(engine(n) for n in (1, 2, 3))
    assert duty(failing, voters=three, considered=tried) is None


def test_who_is_dead_for_a_day_is_forgotten_while_a_majority_lives_and_may_come_back() -> None:
    dead = committed([MarkDown(node(4), "test")], active(4))
    three = frozenset(node(n) for n in (1, 2, 3))
    day = {node(4): 86401.0}
    off = replace(POLICY, rebalance_when_idle=False)
    planned = committed([assigned(2, [1, 2, 3])], dead)

    found = duty(planned, off, voters=three, silent_seconds=day)
    assert isinstance(found, Propose)
    assert isinstance(found.command, RemoveMember)
    assert found.command.node_id == node(4)
    assert duty(planned, off, voters=three, silent_seconds={node(4): 86399.0}) is None
    more = three | {node(n) for n in (5, 6, 7)}
    assert duty(planned, off, voters=more, silent_seconds=day) is None
    gone = committed([found.command], planned)
    assert node(4) not in gone.members
    assert node(4) in committed([registered(4)], gone).members


def test_a_plan_that_cannot_be_made_holds_up_nothing_else() -> None:
    state = committed([*joined(3), MODEL])

    assert isinstance(duty(state), MakePlan)
    assert isinstance(duty(state, may_plan=False), Promote)
