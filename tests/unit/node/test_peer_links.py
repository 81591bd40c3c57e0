"""Whom a node asks for weights, and whom it lets ask."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from butterfly.node.peer_links import PeerLinks, peers_to_ask
from butterfly_cluster.state import ClusterState
from butterfly_core.errors import Refused
from tests.support.clusters import committed, joined, loading, node


def test_who_is_to_carry_the_same_parts_is_asked_before_all_others() -> None:
    state = committed(joined(9), loading(3))
    assert state.model is not None
    tied = replace(state, model=replace(state.model, tied=True))

    assert peers_to_ask(tied, node(1), links_max=1) == [node(3)]  # both have the embedding
    assert peers_to_ask(tied, node(3), links_max=1) == [node(1)]


def test_no_more_than_the_limit_are_asked_and_never_oneself_or_the_dead() -> None:
    state = committed(joined(9))
    dead = replace(state.members[node(2)], alive=False)
    state = replace(state, members={**state.members, node(2): dead})

    asked = peers_to_ask(state, node(1), links_max=5)

    assert len(asked) == len(set(asked)) == 5
    assert {node(1), node(2)}.isdisjoint(peers_to_ask(state, node(1)))
    assert len(peers_to_ask(state, node(1))) == 7


def test_a_hundred_nodes_do_not_all_ask_the_same_few() -> None:
    state = committed(joined(100))

    asked = Counter[str]()
    for number in range(1, 101):
        asked.update(peers_to_ask(state, node(number), links_max=8))

    assert sum(asked.values()) == 800
    assert max(asked.values()) <= 20


@pytest.mark.parametrize(
    ("enabled", "caller", "mode", "story"),
    [
        (False, 1, "aead", "peers is off at this node"),
        (True, 99, "aead", "is no member of this cluster"),
        (True, 1, "plain", "make them equal"),
    ],
)
async def test_only_members_that_protect_data_alike_may_ask(
    enabled: bool, caller: int, mode: str, story: str
) -> None:
    unused: Any = None
    state: ClusterState = loading(3)
    links = PeerLinks(
        node(2),
        enabled=enabled,
        mode="aead",
        listener=unused,
        pool=unused,
        addresses=unused,
        engine=unused,
        state=lambda: state,
    )

    with pytest.raises(Refused, match=story):
        await links.handle_open(node(caller), {"mode": mode})
