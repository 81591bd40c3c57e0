"""An offered model: nothing that goes wrong touches the one that serves."""

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from butterfly_cluster.apply import apply
from butterfly_cluster.commands import (
    ActAsCoordinator,
    Command,
    MarkDown,
    Ordered,
    Repin,
    ReportBroken,
    ReportEngine,
    decode_command,
    encode_command,
)
from butterfly_cluster.offer_commands import (
    CallOffOffer,
    OfferModel,
    ReportPrepared,
    ReportUnprepared,
    SwitchModel,
    WithdrawModel,
)
from butterfly_cluster.state import (
    Acting,
    ClusterState,
    decode_state,
    encode_state,
)
from tests.support.clusters import (
    active,
    assigned,
    committed,
    digest_of,
    loading,
    node,
    spec,
)
from tests.support.offers import (
    OFFERED,
    PLACE,
    PREPARING,
    READY,
    ROOT,
    STAGES,
    SWITCH,
    digests_of,
    prepare,
    prepared,
)


def what_serves(state: ClusterState) -> object:
    return state.model, state.source, state.assignment, state.part_digests, state.pinned_root


def test_every_command_of_an_offer_and_the_state_with_one_come_back_from_json() -> None:
    by = Acting(1, node(1))
    said: list[Command] = [
        OfferModel(1, PLACE),
        CallOffOffer(1),
        Ordered(by, prepare()),
        prepared(STAGES[0]),
        ReportUnprepared(1, node(2), "no such bucket"),
        Ordered(by, WithdrawModel(1, "it does not fit")),
        Ordered(by, SWITCH),
    ]

    assert [decode_command(encode_command(command)) for command in said] == said
    assert decode_state(encode_state(READY)) == READY


def test_a_state_of_before_there_were_offers_is_read() -> None:
    old = encode_state(active(2)).replace(b',"source":null,"offer":null', b"")

    assert b"offer" not in old
    assert decode_state(old) == active(2)


def test_an_offer_is_taken_by_its_number_while_a_model_is_served() -> None:
    assert OFFERED.open_offer is not None
    assert committed([OfferModel(2, PLACE)], active(2)).offer is None
    assert committed([OfferModel(1, PLACE)], loading(2)).offer is None
    second = committed([OfferModel(2, PLACE)], OFFERED)
    assert second.offer == OFFERED.offer


def test_the_switch_names_the_new_model_its_place_and_the_stages_that_hold_it() -> None:
    state = committed([SWITCH], READY)

    assert (state.model, state.source) == (spec("r2", ROOT), PLACE)
    assert state.assignment is not None
    assert (state.epoch, state.assignment.stages, state.assignment.kv_tokens) == (2, STAGES, 32)
    assert state.offer is not None
    assert (state.offer.is_open, state.offer.switched_epoch) == (False, 2)
    assert not state.is_active, "it is validated and warmed up as every epoch"
    assert state.digests == {}


def test_without_a_manifest_the_switch_pins_what_was_held() -> None:
    plain = committed([prepare(spec=spec("r2"))], OFFERED)
    plain = committed([prepared(stage) for stage in STAGES], plain)

    state = committed([SWITCH], plain)

    assert state.pinned_root == ROOT
    assert state.part_digests == {**digests_of(STAGES[0]), **digests_of(STAGES[1])}


@pytest.mark.parametrize(
    "command",
    [
        SwitchModel(2, 2, ROOT),
        SwitchModel(1, 3, ROOT),
        SwitchModel(1, 1, ROOT),
        SwitchModel(1, 2, digest_of("another root")),
    ],
)
def test_a_switch_of_another_number_epoch_or_root_changes_nothing(command: SwitchModel) -> None:
    assert what_serves(committed([command], READY)) == what_serves(READY)


def test_a_switch_needs_every_stage_s_digests_and_engine() -> None:
    half = committed([prepared(STAGES[0])], PREPARING)
    some = dict(list(digests_of(STAGES[1]).items())[1:])
    gap = committed([ReportPrepared(1, node(2), some)], half)
    restarted = committed([ReportEngine(node(2), "next run", None)], READY)

    for state in (OFFERED, PREPARING, half, gap, restarted):
        assert what_serves(committed([SWITCH], state)) == what_serves(state)


def test_a_node_that_cannot_ends_the_offer_and_a_stranger_does_not() -> None:
    told = ReportUnprepared(1, node(2), "no such bucket")

    ended = committed([told], PREPARING)

    assert ended.offer is not None
    assert (ended.open_offer, ended.offer.withdrawn) == (None, "no such bucket")
    assert what_serves(ended) == what_serves(PREPARING)
    stranger = replace(told, node_id=node(9))
    assert committed([stranger], PREPARING).open_offer is not None
    late = replace(told, number=2)
    assert committed([late], PREPARING).open_offer is not None


def test_a_new_plan_ends_an_offer_that_was_for_the_old_one() -> None:
    state = committed([assigned(2, [2, 1])], READY)

    assert state.open_offer is None
    assert state.offer is not None
    assert "a new plan was made (epoch 2)" in str(state.offer.withdrawn)
    assert what_serves(committed([SwitchModel(1, 3, ROOT)], state)) == what_serves(state)


def test_stages_that_are_not_all_of_the_model_or_not_alive_are_not_prepared() -> None:
    for stages in ((), STAGES[:1], STAGES[1:], (STAGES[0], STAGES[0])):
        assert committed([prepare(stages=stages)], OFFERED) == replace(
            OFFERED, index=OFFERED.index + 1
        )
    lost = committed([MarkDown(node(2), "test")], OFFERED)
    assert committed([prepare()], lost).offer == lost.offer


COMMANDS: list[Command] = [
    OfferModel(1, PLACE),
    OfferModel(2, PLACE),
    prepare(),
    prepare(2),
    *(prepared(stage) for stage in STAGES),
    ReportUnprepared(1, node(1), "no"),
    WithdrawModel(1, "no"),
    CallOffOffer(1),
    SWITCH,
    SwitchModel(2, 2, ROOT),
    ReportBroken(1, node(1), "cut"),
    ReportEngine(node(2), "next run", None),
    Repin("root"),
    assigned(2, [1, 2]),
    assigned(2, [1, 2], "r2"),
    ActAsCoordinator(Acting(1, node(1))),
    Ordered(Acting(1, node(1)), prepare()),
    Ordered(Acting(1, node(1)), SWITCH),
    Ordered(Acting(2, node(2)), SWITCH),
]


STATES = st.sampled_from([active(2), OFFERED, PREPARING, READY])
HISTORIES = st.lists(st.sampled_from(COMMANDS), max_size=25)


@given(STATES, HISTORIES)
@example(PREPARING, [SWITCH])
@example(READY, [SWITCH])
def test_the_model_changes_by_a_switch_alone_and_only_when_all_of_it_was_told(
    state: ClusterState, commands: list[Command]
) -> None:
    for command in commands:
        before, state = state, apply(state, state.index + 1, command)
        if (state.model, state.source) == (before.model, before.source):
            continue
        order = command.order if isinstance(command, Ordered) else command
        assert isinstance(order, SwitchModel)
        assert not isinstance(command, Ordered) or command.by == before.acting
        offer = before.open_offer
        assert offer is not None
        assert offer.number == order.number
        assert state.epoch == before.epoch + 1 == order.epoch
        for stage in offer.stages:
            assert digests_of(stage).keys() <= offer.prepared[stage.node_id].keys()


@given(STATES, HISTORIES)
def test_an_open_offer_is_always_for_the_epoch_that_is_assigned(
    state: ClusterState, commands: list[Command]
) -> None:
    state = committed(commands, state)

    offer = state.open_offer
    assert offer is None or offer.epoch == state.epoch
