from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from butterfly_cluster.apply import apply
from butterfly_cluster.commands import (
    ActAsCoordinator,
    AssignLayers,
    Command,
    DescribeModel,
    MarkDown,
    Order,
    Ordered,
    PassValidation,
    RegisterMember,
    RejectDigests,
    RemoveMember,
    Repin,
    ReportBroken,
    ReportDigests,
    ReportEngine,
    ReportFailure,
    ReportPlanProblem,
    ReportWarm,
    decode_command,
    encode_command,
)
from butterfly_cluster.state import Acting, AssignedStage, ClusterState, decode_state, encode_state
from butterfly_core.layers import LayerRange
from tests.support.clusters import (
    CAPACITY,
    active,
    assigned,
    committed,
    digest_of,
    digests,
    engine,
    joined,
    loading,
    node,
    registered,
    spec,
    validated,
)

numbers = st.integers(1, 3)
epochs = st.integers(0, 4)
reports: st.SearchStrategy[Command] = st.one_of(
    numbers.map(registered),
    st.builds(
        lambda n, e: ReportEngine(node(n), engine(n) if e else None, CAPACITY if e else None),
        numbers,
        st.booleans(),
    ),
    st.builds(lambda e, n: ReportDigests(e, node(n), {"layers.0": "d" * 64}), epochs, numbers),
    st.builds(lambda e, n: ReportFailure(e, node(n), "test"), epochs, numbers),
    st.builds(lambda e, n: ReportWarm(e, node(n)), epochs, numbers),
    st.builds(lambda e, n: ReportBroken(e, node(n), "test"), epochs, numbers),
)
orders: st.SearchStrategy[Order] = st.one_of(
    st.builds(lambda n: MarkDown(node(n), "test"), numbers),
    st.builds(lambda n: RemoveMember(node(n), "test"), numbers),
    st.builds(lambda r: DescribeModel(spec(r), {}), st.sampled_from(["r1", "r2"])),
    st.builds(lambda e, ns: assigned(e, ns), epochs, st.sampled_from([[1], [1, 2], [2, 1], [3]])),
    st.builds(ReportPlanProblem, st.sampled_from([None, "too small"])),
    st.builds(lambda e, n: RejectDigests(e, node(n), "test"), epochs, numbers),
    st.builds(lambda e: PassValidation(e, "root"), epochs),
)
actings = st.builds(lambda t, n: Acting(t, node(n)), st.integers(1, 3), numbers)
commands: st.SearchStrategy[Command] = st.one_of(
    reports, orders, st.builds(Ordered, actings, orders), actings.map(ActAsCoordinator)
)


@given(
    st.sampled_from([ClusterState(), loading(2), validated(2), active(2)]),
    st.lists(commands, max_size=40),
)
@example(loading(2), [ReportWarm(1, node(1))])
@example(validated(2), [ReportWarm(1, node(1))])
def test_epochs_only_rise_and_nothing_unproven_becomes_active(
    state: ClusterState, history: list[Command]
) -> None:
    for command in history:
        before, state = state, apply(state, state.index + 1, command)
        assert state.index == before.index + 1
        assert state.epoch >= before.epoch
        if state.active_epoch == state.epoch > 0:
            assert state.validated_epoch == state.epoch


@given(st.lists(commands, max_size=20))
def test_a_snapshot_and_a_log_entry_read_back_as_they_were(history: list[Command]) -> None:
    state = committed(history)

    assert decode_state(encode_state(state)) == state
    assert [decode_command(encode_command(command)) for command in history] == history


@given(st.lists(commands, max_size=20), commands)
def test_a_command_committed_twice_does_what_once_does(
    history: list[Command], command: Command
) -> None:
    state = committed(history)
    once = apply(state, 100, command)
    order = command.order if isinstance(command, Ordered) else command
    if isinstance(order, AssignLayers | RejectDigests):
        return  # the second is stale, which other tests cover

    assert apply(once, 101, command) == replace(once, index=101)


def test_the_way_from_nothing_to_active() -> None:
    state = active(2)

    assert state.is_active
    assert state.validated_root == "root"
    assert [member.node_id for member in state.live] == [node(1), node(2)]


def test_a_plan_must_be_the_next_epoch_and_cover_every_layer_once() -> None:
    state = committed([*joined(2), DescribeModel(spec(), {})])
    gap = (AssignedStage(node(1), engine(1), LayerRange(1, 4)),)
    twice = tuple(
        AssignedStage(node(1), engine(1), LayerRange(*bounds)) for bounds in ((0, 2), (2, 4))
    )

    for refused in (
        assigned(2, [1]),
        assigned(1, [3]),
        assigned(1, [1], model="another"),
        AssignLayers(1, gap, 64, "r1", ()),
        AssignLayers(1, twice, 64, "r1", ()),
        AssignLayers(1, (), 64, "r1", ()),
    ):
        assert committed([refused], state).assignment is None
    assert committed([assigned(1, [1])], state).epoch == 1


def test_validation_needs_the_digests_of_every_stage() -> None:
    state = loading(2)

    early = committed([digests(state, 1), PassValidation(1, "root")], state)
    late = committed([digests(state, 2), PassValidation(1, "root")], early)

    assert early.validated_epoch == 0
    assert late.validated_epoch == 1


def test_only_the_head_can_say_that_the_pipeline_is_warm_and_only_after_validation() -> None:
    assert committed([ReportWarm(1, node(1))], loading(2)).active_epoch == 0
    assert committed([ReportWarm(1, node(2))], validated(2)).active_epoch == 0
    assert committed([ReportWarm(1, node(1))], validated(2)).active_epoch == 1


def test_a_root_once_agreed_is_pinned_and_another_one_is_refused() -> None:
    state = committed([assigned(2, [1, 2])], active(2))
    reports = [digests(state, number) for number in (1, 2)]

    assert state.pinned_root == "root"
    assert state.part_digests["layers.2"] == digest_of("layers.2")
    assert committed([*reports, PassValidation(2, "other")], state).validated_epoch == 1
    assert committed([*reports, PassValidation(2, "root")], state).validated_epoch == 2


def test_a_pinned_root_that_was_given_up_is_replaced_by_what_the_next_epoch_loads() -> None:
    state = committed([Repin("root")], active(2))

    assert (state.pinned_root, state.validated_root, state.part_digests) == (None, None, {})
    assert not state.is_intact
    assert state.broken_reason == "the pinned root root was given up; all nodes load anew"
    changed = committed([DescribeModel(spec("r2"), {}), assigned(2, [1, 2], model="r2")], state)
    reports = [digests(changed, number, "new") for number in (1, 2)]
    again = committed([*reports, PassValidation(2, "other"), ReportWarm(2, node(1))], changed)
    assert (again.pinned_root, again.is_active) == ("other", True)
    assert again.part_digests["layers.0"] == digest_of("layers.0new")


def test_what_is_held_of_a_root_that_was_given_up_is_not_pinned_again() -> None:
    state = committed([Repin("root")], active(2))

    assert committed([PassValidation(1, "root")], state).pinned_root is None
    assert committed([digests(state, 1), PassValidation(1, "root")], state).pinned_root is None


def test_only_the_root_that_is_pinned_can_be_given_up_and_only_once() -> None:
    state = active(2)
    given_up = committed([Repin("root")], state)

    assert committed([Repin("other")], state) == replace(state, index=state.index + 1)
    assert committed([Repin("root")], given_up) == replace(given_up, index=given_up.index + 1)
    fresh = committed([Repin("root")], loading(2))
    assert fresh == replace(loading(2), index=fresh.index)


def test_a_person_gives_a_root_up_whoever_coordinates() -> None:
    led = committed([ActAsCoordinator(Acting(3, node(2)))], active(2))

    assert committed([Repin("root")], led).pinned_root is None


def test_the_manifest_decides_about_the_root() -> None:
    described = DescribeModel(spec(manifest_root="m"), {})
    state = committed([*joined(1), described, assigned(1, [1], model="m")])
    state = committed([digests(state, 1)], state)

    assert committed([PassValidation(1, "other")], state).validated_epoch == 0
    assert committed([PassValidation(1, "m")], state).validated_epoch == 1


def test_a_model_that_was_proven_is_not_replaced_by_another_description() -> None:
    assert committed([DescribeModel(spec("r2"), {})], active(1)).model == spec()
    assert committed([DescribeModel(spec("r2"), {})], loading(1)).model == spec("r2")


def test_a_lost_engine_a_dead_member_and_a_broken_link_end_what_is_active() -> None:
    state = active(2)

    for command in (
        ReportEngine(node(2), None, None),
        ReportEngine(node(2), "another run", CAPACITY),
        MarkDown(node(2), "test"),
        RemoveMember(node(2), "test"),
        ReportBroken(1, node(1), "test"),
    ):
        assert not committed([command], state).is_active


def test_a_member_that_comes_back_keeps_its_age_and_lives_again() -> None:
    state = committed([MarkDown(node(1), "test")], active(2))
    again = committed([registered(1)], state)

    assert [member.node_id for member in state.live] == [node(2)]
    assert [member.node_id for member in again.live] == [node(1), node(2)]


def test_rejected_digests_are_forgotten_and_say_why() -> None:
    state = loading(1)
    state = committed([digests(state, 1), RejectDigests(1, node(1), "layers.2 differs")], state)

    assert node(1) not in state.digests
    assert state.rejections[node(1)].count == 1
    assert state.failures[node(1)].message == "layers.2 differs"


def test_reports_about_an_older_epoch_change_nothing() -> None:
    state = committed([assigned(2, [1, 2])], active(2))

    for stale in (
        ReportDigests(1, node(1), {}),
        ReportFailure(1, node(1), "late"),
        ReportBroken(1, node(1), "late"),
        PassValidation(1, "root"),
    ):
        assert committed([stale], state) == replace(state, index=state.index + 1)


def test_a_new_registration_replaces_addresses_but_not_the_engine() -> None:
    state = committed(joined(1))
    moved = replace(registered(1), version="1")
    assert isinstance(moved, RegisterMember)

    member = committed([moved], state).members[node(1)]

    assert (member.version, member.engine) == ("1", engine(1))
