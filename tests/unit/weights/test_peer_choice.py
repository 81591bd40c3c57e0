"""From whom a leaf comes: one fetcher for all, nobody waits in a circle, holders share the work."""

from collections import Counter
from collections.abc import Mapping

from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_weights.peer_choice import (
    HOLDERS_ASKED,
    STRETCH_BYTES,
    Choice,
    FromHolders,
    FromSource,
    Holding,
    WaitFor,
    choose,
    source_should_help,
    stretch_of,
)
from butterfly_weights.select import leaves_of
from butterfly_weights.shares import key_of, share_out
from butterfly_weights.tensors import TensorInfo

names = st.text("abcdef0123456789", min_size=1, max_size=6)
stretches = st.builds(stretch_of, st.text(max_size=5), st.integers(0, 1 << 40))
holdings = st.sampled_from(Holding)


def choices(world: Mapping[str, Holding], stretch: str) -> dict[str, Choice]:
    """What each of those that lack a tensor does, when all see the same."""
    return {
        me: choose(me, stretch, {name: view for name, view in world.items() if name != me})
        for me, holding in world.items()
        if holding is Holding.LOADING
    }


@settings(deadline=None)
@given(st.sets(names, min_size=1, max_size=12), stretches)
def test_of_those_that_agree_exactly_one_fetches_and_all_others_wait_for_it(
    loaders: set[str], stretch: str
) -> None:
    found = choices(dict.fromkeys(loaders, Holding.LOADING), stretch)

    (fetcher,) = (name for name, choice in found.items() if choice == FromSource())
    assert all(choice == WaitFor(fetcher) for name, choice in found.items() if name != fetcher)


@settings(deadline=None)
@given(st.dictionaries(names, st.dictionaries(names, holdings), max_size=12), stretches)
def test_nobody_waits_in_a_circle_whatever_each_of_them_sees(
    seen: dict[str, dict[str, Holding]], stretch: str
) -> None:
    found = {
        me: choose(me, stretch, {name: view for name, view in views.items() if name != me})
        for me, views in seen.items()
    }
    for start in found:
        waited: list[str] = [start]
        while isinstance(choice := found.get(waited[-1]), WaitFor):
            assert choice.name not in waited
            waited.append(choice.name)


@settings(deadline=None)
@given(st.dictionaries(names, holdings, max_size=12), stretches)
def test_nobody_goes_to_the_source_or_waits_where_somebody_holds_it(
    world: dict[str, Holding], stretch: str
) -> None:
    holders = {name for name, holding in world.items() if holding is Holding.HELD}
    for choice in choices(world, stretch).values():
        if holders:
            assert isinstance(choice, FromHolders)
            assert len(choice.names) == min(HOLDERS_ASKED, len(holders))
            assert set(choice.names) <= holders
        else:
            assert not isinstance(choice, FromHolders)


@settings(deadline=None)
@given(st.dictionaries(names, holdings, max_size=12), stretches, names)
def test_nobody_is_asked_that_said_no_and_nobody_waits_for_itself(
    world: dict[str, Holding], stretch: str, me: str
) -> None:
    views = {name: view for name, view in world.items() if name != me}
    choice = choose(me, stretch, views)

    asked: tuple[str, ...] = ()
    if isinstance(choice, FromHolders):
        asked = choice.names
    elif isinstance(choice, WaitFor):
        asked = (choice.name,)
    assert all(views[name] is not Holding.NO for name in asked)
    assert me not in asked


@settings(deadline=None)
@given(st.sets(names, min_size=2, max_size=8), st.integers(0, 1 << 30))
def test_who_left_moves_only_what_it_was_to_fetch(loaders: set[str], start: int) -> None:
    gone = min(loaders)
    for number in range(40):
        stretch = stretch_of("shard", (start + number) * STRETCH_BYTES)
        before = choices(dict.fromkeys(loaders, Holding.LOADING), stretch)
        after = choices(dict.fromkeys(loaders - {gone}, Holding.LOADING), stretch)
        if before[gone] != FromSource():
            assert after == {name: choice for name, choice in before.items() if name != gone}


def test_ten_loaders_share_a_big_model_within_a_fifth() -> None:
    loaders = [f"node{number}" for number in range(10)]
    views = dict.fromkeys(loaders, Holding.LOADING)
    work = Counter[str]()
    for number in range(5000):
        found = choices(views, stretch_of("shard", number * STRETCH_BYTES))
        work.update(name for name, choice in found.items() if choice == FromSource())

    assert sum(work.values()) == 5000
    assert all(400 <= work[name] <= 600 for name in loaders)


def test_many_askers_spread_over_few_holders_within_a_fifth() -> None:
    views = dict.fromkeys(("a", "b", "c"), Holding.HELD)
    asked = Counter[str]()
    for asker in range(50):
        for number in range(30):
            choice = choose(f"asker{asker}", stretch_of("s", number * STRETCH_BYTES), views)
            assert isinstance(choice, FromHolders)
            asked[choice.names[0]] += 1

    assert all(400 <= asked[name] <= 600 for name in views)


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 40 << 20), min_size=1, max_size=6),
    st.dictionaries(names, st.dictionaries(st.integers(0, 5), holdings), max_size=5),
    st.sets(st.integers(0, 5)),
)
def test_every_leaf_is_shared_out_to_the_source_or_to_peers_and_never_to_both(
    sizes: list[int], views: dict[str, dict[int, Holding]], provable: set[int]
) -> None:
    tensors = [TensorInfo(f"t{n}", "U8", (size,), size, "s", 0) for n, size in enumerate(sizes)]
    leaves = [leaf for n, tensor in enumerate(tensors) for leaf in leaves_of(n, tensor)]

    shares = share_out(
        "me",
        leaves,
        views,
        stretch=lambda leaf: stretch_of("s", leaf.offset),
        provable=lambda leaf: leaf.tensor in provable,
    )

    first = [key_of(leaf) for share in shares.peers.values() for leaf in share.first]
    awaited = [key_of(leaf) for share in shares.peers.values() for leaf in share.awaited]
    once = [*shares.source, *first, *awaited]
    assert sorted(once) == sorted(key_of(leaf) for leaf in leaves)
    assert all(number in provable for number, _ in (*first, *awaited))


@settings(deadline=None)
@given(st.floats(0, 1e4), st.integers(0, 1 << 40), st.floats(0, 1e12), st.floats(0.1, 100))
def test_the_source_never_helps_before_patience_ends_and_always_when_nothing_comes(
    idle: float, given_bytes: int, rate: float, patience: float
) -> None:
    helps = source_should_help(idle, given_bytes, rate, patience_seconds=patience)

    if idle < patience:
        assert not helps
    elif not given_bytes:
        assert helps
    elif not rate:
        assert not helps  # the source may not even answer: what peers give is not given up
