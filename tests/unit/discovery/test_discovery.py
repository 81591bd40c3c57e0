"""Answers are merged without loss, and dialling is fair and patient."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_core.address import Address, parse_address
from butterfly_core.errors import InvalidValue
from butterfly_discovery.book import (
    ADDRESSES_PER_SOURCE_MAX,
    RETRY_SECONDS_MAX,
    Attempts,
    Book,
    choose,
    failed,
    merge,
    rest_seconds,
)
from butterfly_discovery.source import StaticSource

A, B, C = (Address(host, 7000) for host in "abc")
addresses = st.builds(Address, st.sampled_from("abcdef"), st.integers(1, 3))
tries = st.builds(Attempts, st.integers(0, 9), st.floats(0, 100))


async def test_a_static_list_names_each_seed_once() -> None:
    assert await StaticSource([A, B, A]).next() == {A, B}


@pytest.mark.parametrize("seed", ["0.0.0.0:7000", "[::]:7000", "a:0"])
def test_a_seed_that_nobody_can_dial_is_refused(seed: str) -> None:
    with pytest.raises(InvalidValue, match="cannot be dialled"):
        StaticSource([parse_address(seed)])


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.frozensets(addresses))))
def test_merging_keeps_the_last_answer_of_each_source(
    answers: list[tuple[str, frozenset[Address]]],
) -> None:
    book = Book()
    for source, answer in answers:
        book = merge(book, source, answer)

    assert book.addresses == frozenset().union(*dict(answers).values())


def test_a_source_gone_wild_is_cut() -> None:
    wild = frozenset(Address("h", port) for port in range(1, 3000))

    assert len(merge(Book(), "dns", wild).addresses) == ADDRESSES_PER_SOURCE_MAX


@given(
    st.frozensets(addresses),
    st.frozensets(addresses, max_size=2),
    st.dictionaries(addresses, tries),
    st.floats(0, 200),
    st.integers(0, 6),
)
def test_only_rested_others_are_chosen_and_the_least_failed_first(
    known: frozenset[Address],
    own: frozenset[Address],
    attempts: dict[Address, Attempts],
    now: float,
    count_max: int,
) -> None:
    chosen = choose(known, own=own, attempts=attempts, now=now, count_max=count_max)
    failures = [attempts[a].failures if a in attempts else 0 for a in chosen]

    assert set(chosen) <= known - own
    assert len(chosen) <= count_max
    assert failures == sorted(failures)
    for address in set(chosen) & set(attempts):
        last = attempts[address]
        assert now - last.last_seconds >= rest_seconds(last.failures)


@given(st.frozensets(addresses, min_size=1), st.dictionaries(addresses, tries))
def test_after_a_rest_everybody_else_is_tried_again(
    known: frozenset[Address], attempts: dict[Address, Attempts]
) -> None:
    later = 100.0 + RETRY_SECONDS_MAX

    assert set(choose(known, own=[], attempts=attempts, now=later, count_max=99)) == known


def test_nodes_do_not_all_dial_the_same_seed_first() -> None:
    known = [Address(f"10.0.0.{i}", 7000) for i in range(10)]

    first = {choose(known, own=[me], attempts={}, now=0.0, count_max=1) for me in known}

    assert len(first) > 3


def test_rests_grow_with_failures_up_to_a_limit() -> None:
    once = failed({}, A, 3.0)

    assert once == Attempts(1, 3.0)
    assert failed({A: once}, A, 4.0) == Attempts(2, 4.0)
    assert [rest_seconds(n) for n in (0, 1, 2, 3)] == [0.0, 0.2, 0.4, 0.8]
    assert rest_seconds(10**6) == RETRY_SECONDS_MAX
