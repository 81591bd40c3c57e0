"""Giving weights to peers: within the limit, a few at once, and whatever they ask."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from butterfly.engine_host.peer_links import AskedLink
from butterfly.engine_host.peer_protocol import pack_give, pack_have
from butterfly.engine_host.uploads import LINKS_MAX, Allowance, Uploads
from butterfly_core.errors import PeerError, Unreachable
from butterfly_weights.merkle import LEAF_BYTES, leaf_digest
from butterfly_weights.peer_choice import Holding
from butterfly_weights.peers import LEAVES_WANTED_MAX, Answer, Shelf, WantedLeaf
from butterfly_wire.datalink import DataLink
from tests.support.peer_worlds import link_pair

NAME = b"t" * 32
DATA = memoryview(os.urandom(LEAF_BYTES + 1000))
LEAVES = [
    WantedLeaf(NAME, index, leaf_digest(DATA[index * LEAF_BYTES :][:LEAF_BYTES]))
    for index in range(2)
]


@pytest.fixture
def shelf() -> Shelf:
    shelf = Shelf()
    shelf.keep(NAME, DATA)
    return shelf


@pytest.fixture
def uploads(shelf: Shelf) -> Iterator[Uploads]:
    uploads = Uploads(shelf)
    with closing(uploads):
        yield uploads


def connect(uploads: Uploads, asker: str = "asker") -> tuple[AskedLink, DataLink]:
    mine, theirs = link_pair(asker, "asked")
    uploads.serve(asker, theirs)
    return AskedLink("asked", mine), mine


def test_a_leaf_is_given_and_what_is_not_here_is_said_at_once(uploads: Uploads) -> None:
    asked, _ = connect(uploads)
    beyond = WantedLeaf(NAME, 2, bytes(32))
    other = WantedLeaf(bytes(32), 0, bytes(32))

    assert asked.have([NAME, bytes(32)]) == (Holding.HELD, Holding.NO)
    for position, wanted in enumerate(LEAVES):
        given_leaf = asked.give([other, wanted])
        assert (given_leaf.answer, given_leaf.position) == (Answer.LEAF, 1)
        assert leaf_digest(given_leaf.data) == LEAVES[position].leaf
    assert asked.give([beyond, other]).answer is Answer.NOT_HERE
    asked.close()


def test_a_tensor_that_its_owner_let_go_is_not_here_any_more(
    uploads: Uploads, shelf: Shelf
) -> None:
    asked, _ = connect(uploads)
    data = memoryview(bytearray(10))
    shelf.keep(bytes(32), data)
    before = asked.have([bytes(32)])

    del data

    assert (before, asked.have([bytes(32)])) == ((Holding.HELD,), (Holding.NO,))
    asked.close()


def test_an_upload_limit_holds_on_average_whoever_asks(shelf: Shelf) -> None:
    rate = 20 << 20
    uploads = Uploads(shelf, rate)
    began = time.monotonic()
    with closing(uploads):
        links = [connect(uploads, f"asker{number}")[0] for number in range(3)]
        answers = []
        while time.monotonic() - began < 2.0:
            answers += [link.give(LEAVES[:1]).answer for link in links]
        took = time.monotonic() - began
        for link in links:
            link.close()

    assert set(answers) == {Answer.LEAF, Answer.BUSY}
    # a second's worth and a leaf may go out at once; beyond that, the rate
    assert 0.5 * rate * took <= uploads.given_bytes <= rate * (took + 1) + LEAF_BYTES


@settings(deadline=None)
@given(
    st.integers(1, 1 << 34),
    st.lists(st.tuples(st.floats(0, 10), st.integers(1, LEAF_BYTES)), max_size=60),
)
def test_over_any_time_no_more_is_allowed_than_the_rate_a_second_more_and_one_leaf(
    rate: int, asked: list[tuple[float, int]]
) -> None:
    allowance, now = Allowance(rate, 0.0), 0.0
    sent: list[tuple[float, int]] = []
    for pause, nbytes in asked:
        now += pause
        if allowance.take(nbytes, now):
            sent.append((now, nbytes))
    for first in range(len(sent)):
        since, total = sent[first][0], 0
        for at, nbytes in sent[first:]:
            total += nbytes
            assert total <= rate * (at - since + 1) * 1.0001 + LEAF_BYTES


@settings(deadline=None)
@given(st.floats(0, 1e6), st.integers(1, 1 << 40))
def test_no_limit_never_says_no(now: float, nbytes: int) -> None:
    allowance = Allowance(0, 0.0)

    assert all(allowance.take(nbytes, now) for _ in range(5))


nonsense = st.binary(max_size=80) | st.builds(
    lambda request, cut: request[:cut],
    st.sampled_from([pack_have([NAME] * 3), pack_give(LEAVES)]),
    st.integers(0, 200),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(nonsense, st.binary(max_size=20)), min_size=1, max_size=4))
def test_nonsense_ends_its_link_and_no_other(
    uploads: Uploads, frames: list[tuple[bytes, bytes]]
) -> None:
    honest, _ = connect(uploads, "honest")
    _, hostile = connect(uploads, "hostile")

    with closing(hostile), suppress(PeerError, Unreachable):
        for meta, payload in frames:
            hostile.send(meta, payload)
            hostile.receive()

    assert honest.have([NAME]) == (Holding.HELD,)
    assert honest.give(LEAVES[1:]).answer is Answer.LEAF
    honest.close()


def test_more_leaves_than_allowed_in_one_request_end_the_link(uploads: Uploads) -> None:
    asked, _ = connect(uploads)

    with closing(asked), pytest.raises(Unreachable):
        asked.give([LEAVES[0]] * (LEAVES_WANTED_MAX + 1))


def test_links_above_the_limit_are_closed_and_a_place_becomes_free_again(uploads: Uploads) -> None:
    links = [connect(uploads, f"asker{number}")[0] for number in range(LINKS_MAX)]
    assert all(link.have([NAME]) == (Holding.HELD,) for link in links)

    with closing(connect(uploads, "late")[0]) as late, pytest.raises(Unreachable):
        late.have([NAME])

    for link in links:
        link.close()
    deadline = time.monotonic() + 30
    while True:
        with closing(connect(uploads, "later")[0]) as later, suppress(Unreachable):
            assert later.have([NAME]) == (Holding.HELD,)
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
