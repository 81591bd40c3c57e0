"""What a coordinator and a node do about an offered model."""

from dataclasses import replace
from typing import Any

import pytest

from butterfly_cluster.commands import (
    ActAsCoordinator,
    DescribeModel,
    MarkDown,
    ReportBroken,
    ReportEngine,
)
from butterfly_cluster.duties import (
    Duty,
    Observations,
    PlanOffer,
    Policy,
    Propose,
    coordinator_duty,
)
from butterfly_cluster.node_duties import Facts, node_duty
from butterfly_cluster.offer_commands import OfferModel, SwitchModel, WithdrawModel
from butterfly_cluster.state import Acting, ClusterState
from tests.support.clusters import (
    CAPACITY,
    active,
    committed,
    digest_of,
    engine,
    joined,
    node,
    registered,
    spec,
)
from tests.support.offers import (
    OFFERED,
    PLACE,
    PREPARING,
    READY,
    ROOT,
    STAGES,
    prepare,
    prepared,
)

POLICY = Policy(quorum_size=2, rebalance_after_seconds=0.0)
FOUND = DescribeModel(spec("r2", ROOT), {})


def duty(state: ClusterState, **changes: Any) -> Duty | None:
    """Of a node that acts already, and sees nothing wrong."""
    look = Observations(
        silent_seconds={},
        settled_seconds=100.0,
        gathered_seconds=100.0,
        voters=frozenset({node(1)}),
        me=node(1),
        term=1,
        offered=FOUND,
        offered_root_of=lambda _: ROOT,
        offer_ready_seconds=5.0,
        requests_late_seconds=1.0,
    )
    state = committed([ActAsCoordinator(Acting(1, node(1)))], state)
    return coordinator_duty(state, replace(look, **changes), POLICY)


def reason_of(found: Duty | None) -> str:
    assert isinstance(found, Propose)
    assert isinstance(found.command, WithdrawModel)
    return found.command.reason


def test_an_offer_is_planned_once_its_source_was_read_here() -> None:
    assert duty(OFFERED, offered=None) is None

    found = duty(OFFERED)

    assert isinstance(found, PlanOffer)
    assert [member.node_id for member in found.machines] == [node(1), node(2)]
    assert duty(PREPARING) is None


def test_the_model_that_is_served_already_is_not_loaded_again() -> None:
    same = DescribeModel(spec(), {})

    assert "s3://models/b is the model that is served already" in reason_of(
        duty(OFFERED, offered=same)
    )


def test_a_switch_waits_until_no_answer_is_under_way_as_far_as_reports_tell() -> None:
    switch = Propose(SwitchModel(1, 2, ROOT))

    assert duty(READY) == switch
    assert duty(READY, active_requests=1) is None
    assert duty(READY, offer_ready_seconds=0.5) is None


def test_answers_that_take_too_long_do_not_hold_up_the_switch() -> None:
    patience = POLICY.switch_after_seconds

    assert duty(READY, active_requests=1, offer_ready_seconds=patience - 0.1) is None
    late = duty(READY, active_requests=1, offer_ready_seconds=patience)
    assert late == Propose(SwitchModel(1, 2, ROOT))


def test_a_new_coordinator_waits_for_its_own_reading_before_it_switches() -> None:
    assert duty(READY, offered=None, offered_root_of=None) is None


def test_digests_that_are_not_the_manifest_s_end_the_offer_by_name() -> None:
    manifest = {"layers.0": digest_of("something else")}
    state = committed([prepare(part_digests=manifest)], OFFERED)
    state = committed([prepared(STAGES[0])], state)

    told = reason_of(duty(state))

    assert f"node {node(1)[:8]}: the weights of layers.0 have the digest" in told
    assert f"its manifest's is {manifest['layers.0']}" in told


def test_another_root_than_the_manifest_s_ends_the_offer() -> None:
    other = digest_of("other")

    told = reason_of(duty(READY, offered_root_of=lambda _: other))

    assert f"have the Merkle root {other}, and its manifest says {ROOT}" in told


@pytest.mark.parametrize("state", [OFFERED, PREPARING, READY])
def test_a_pipeline_that_breaks_ends_the_offer_before_a_new_plan_is_made(
    state: ClusterState,
) -> None:
    broken = committed([ReportBroken(1, node(1), "node 2 fell silent")], state)

    told = reason_of(duty(broken))

    assert "the pipeline of epoch 1 broke" in told
    assert "node 2 fell silent" in told


def test_a_node_that_was_to_hold_a_stage_of_it_and_dies_ends_the_offer() -> None:
    third = (*STAGES[:1], replace(STAGES[1], node_id=node(3), engine=engine(3)))
    state = committed(joined(3)[4:], OFFERED)
    state = committed([prepare(stages=third), MarkDown(node(3), "test")], state)

    assert f"node {node(3)[:8]}, which was to hold layers 1-3 of it" in reason_of(duty(state))


def test_nothing_is_rebalanced_while_a_model_is_offered() -> None:
    newcomer = committed(joined(3)[4:], active(2))
    offered = committed([OfferModel(1, PLACE), prepare()], newcomer)

    assert duty(newcomer, offered=None) is not None
    assert duty(offered) is None


def test_a_node_tells_once_what_became_of_the_offer() -> None:
    report = prepared(STAGES[0])
    mine = Facts(registered(1), engine=engine(1), capacity=CAPACITY, offer_report=report)

    assert node_duty(PREPARING, mine) == report
    assert node_duty(committed([report], PREPARING), mine) is None
    assert node_duty(committed([WithdrawModel(1, "no")], PREPARING), mine) is None
    again = committed([WithdrawModel(1, "no"), OfferModel(2, PLACE)], PREPARING)
    assert node_duty(again, mine) is None


def test_a_node_without_layers_tells_that_it_cannot_read_the_offer() -> None:
    state = committed([ReportEngine(node(2), "next run", CAPACITY)], OFFERED)
    report = prepared(STAGES[1])
    mine = Facts(registered(2), engine="next run", capacity=CAPACITY, offer_report=report)

    assert node_duty(state, mine) == report
