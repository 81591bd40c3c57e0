"""What nodes say: hellos are checked, errors keep their class."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_core import errors
from butterfly_core.errors import (
    ButterflyError,
    NotAuthenticated,
    NotServing,
    ProtocolViolation,
    Refused,
    StorageError,
)
from butterfly_core.ids import NodeId
from butterfly_wire.frames import pack_map, unpack_map
from butterfly_wire.protocol import (
    CONTROL,
    SPOKEN,
    Hello,
    Versions,
    agreed_version,
    body_of,
    check_expected,
    check_hello,
    count_of,
    error_from_map,
    error_to_map,
    parse_hello,
    text_of,
)

ANNA, BERT = NodeId("a" * 32), NodeId("b" * 32)
PLAIN_ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, ButterflyError) and value is not NotServing
]


def hello(**changes: Any) -> Hello:
    fields = {"versions": SPOKEN, "cluster_name": "x", "node_id": BERT, "purpose": CONTROL}
    return Hello(**{**fields, **changes})


def over_the_wire(error: ButterflyError) -> ButterflyError:
    return error_from_map(unpack_map(pack_map(error_to_map(error))))


@pytest.mark.parametrize("kind", PLAIN_ERRORS)
def test_an_error_arrives_as_its_class_with_its_message(kind: type[ButterflyError]) -> None:
    heard = over_the_wire(kind("the disk is full"))

    assert type(heard) is kind
    assert str(heard) == "the disk is full"


def test_not_serving_keeps_its_phase_and_when_to_ask_again() -> None:
    heard = over_the_wire(NotServing("soon", phase="loading_weights", retry_after_seconds=7))

    assert isinstance(heard, NotServing)
    assert (str(heard), heard.phase, heard.retry_after_seconds) == ("soon", "loading_weights", 7)


def test_a_class_that_the_peer_does_not_know_arrives_as_its_nearest_known_parent() -> None:
    class DiskWornOut(StorageError):
        pass

    assert type(over_the_wire(DiskWornOut("x"))) is StorageError


def test_an_error_of_unknown_classes_is_a_refusal() -> None:
    assert type(error_from_map({"classes": ["Exception", 3], "message": "x"})) is Refused


def test_a_long_message_is_cut() -> None:
    assert len(str(over_the_wire(Refused("x" * 100_000)))) == 4000


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"classes": [], "message": 3},
        {"classes": "Refused", "message": "x"},
        {"classes": ["Refused"] * 100, "message": "x"},
        {"classes": ["NotServing"], "message": "x"},
        {"classes": ["NotServing"], "message": "x", "phase": "p", "retry_after_seconds": -1},
        {"classes": ["NotServing"], "message": "x", "phase": 1, "retry_after_seconds": 1},
    ],
)
def test_a_malformed_error_is_a_violation(meta: dict[str, Any]) -> None:
    with pytest.raises(ProtocolViolation):
        error_from_map(meta)


def test_a_hello_comes_back_from_its_map() -> None:
    assert parse_hello(hello().to_map()) == hello()


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["version", "versions", "cluster_name", "node_id", "purpose", "other"]),
        st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.just(BERT),
    )
)
def test_any_map_is_a_hello_or_a_violation(meta: dict[str, Any]) -> None:
    try:
        found = parse_hello(meta)
    except ProtocolViolation:
        return
    assert found.node_id == BERT


def test_a_peer_of_this_cluster_that_is_who_it_says_is_welcome() -> None:
    check_hello(hello(node_id=ANNA), hello(), BERT)


def test_another_cluster_is_refused_with_both_names() -> None:
    with pytest.raises(Refused, match="cluster name 'y', this node belongs to 'x'"):
        check_hello(hello(node_id=ANNA), hello(cluster_name="y"), BERT)


@pytest.mark.parametrize(
    ("mine", "theirs", "agreed"),
    [((1, 1), (1, 1), 1), ((1, 3), (2, 5), 3), ((2, 5), (1, 3), 3), ((1, 9), (4, 4), 4)],
)
def test_the_newest_common_version_is_agreed(
    mine: tuple[int, int], theirs: tuple[int, int], agreed: int
) -> None:
    one, other = hello(node_id=ANNA, versions=Versions(*mine)), hello(versions=Versions(*theirs))

    assert check_hello(one, other, BERT) == agreed
    assert agreed_version(other, one) == agreed


def test_no_common_version_is_refused_with_both_ranges_and_who_is_to_be_upgraded() -> None:
    mine, theirs = hello(node_id=ANNA), hello(versions=Versions(2, 4))

    with pytest.raises(Refused, match=r"bbbbbbbb speaks wire versions 2 to 4, .* speaks 1: none"):
        check_hello(mine, theirs, BERT)
    with pytest.raises(Refused, match="upgrade node aaaaaaaa"):
        check_hello(mine, theirs, BERT)
    with pytest.raises(Refused, match="upgrade node aaaaaaaa"):
        check_hello(theirs, mine, ANNA)


def test_a_hello_of_the_first_release_names_one_version() -> None:
    said = {"version": 1, "cluster_name": "x", "node_id": BERT, "purpose": CONTROL}

    assert parse_hello(said).versions == Versions(1, 1)
    assert hello(versions=Versions(1, 7)).to_map()["version"] == 1  # which it can read


@pytest.mark.parametrize(
    "versions", [[], [1], [2, 1], [0, 1], [1, 1 << 16], [True, True], "12", {1: 2}, [1.0, 2.0]]
)
def test_a_range_that_is_none_is_a_violation(versions: object) -> None:
    with pytest.raises(ProtocolViolation):
        parse_hello({**hello().to_map(), "versions": versions})


def test_an_id_that_the_certificate_does_not_prove_is_not_authenticated() -> None:
    with pytest.raises(NotAuthenticated, match=r"its certificate says a{32}"):
        check_hello(hello(node_id=ANNA), hello(), ANNA)


def test_another_node_than_expected_is_not_authenticated() -> None:
    check_expected(None, ANNA, "h:1")
    check_expected(ANNA, ANNA, "h:1")
    with pytest.raises(NotAuthenticated, match=r"h:1 is node a{32}, expected b{32}"):
        check_expected(BERT, ANNA, "h:1")


@pytest.mark.parametrize("meta", [{}, {"body": 1}, {"body": {1: 2}}])
def test_a_body_is_a_map_with_text_keys(meta: dict[str, Any]) -> None:
    with pytest.raises(ProtocolViolation):
        body_of(meta)


@pytest.mark.parametrize("value", [None, 0, -1, 11, True, 1.0, "1"])
def test_a_count_is_a_whole_number_in_its_range(value: object) -> None:
    with pytest.raises(ProtocolViolation):
        count_of({"bytes": value}, "bytes", 10)


def test_a_text_has_a_bounded_length() -> None:
    assert text_of({"method": "x" * 200}, "method") == "x" * 200
    with pytest.raises(ProtocolViolation):
        text_of({"method": "x" * 201}, "method")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["classes", "message", "phase", "retry_after_seconds"]),
        st.none()
        | st.integers()
        | st.text()
        | st.lists(st.sampled_from(["NotServing", "Refused", "str", "", 3]), max_size=3),
    )
)
def test_any_map_is_an_error_or_a_violation(meta: dict[str, Any]) -> None:
    try:
        error = error_from_map(meta)
    except ProtocolViolation:
        return
    assert isinstance(error, ButterflyError)


def test_an_error_about_a_name_that_is_no_unicode_can_be_sent() -> None:
    told = error_from_map(unpack_map(pack_map(error_to_map(StorageError("/models/caf\udce9")))))

    assert isinstance(told, StorageError)
    assert str(told) == "/models/caf?"
