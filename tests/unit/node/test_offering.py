"""A person's wish for another model on its way into the log, and as the status shows it."""

from collections.abc import Mapping

import pytest

from butterfly.node.offer_view import offer_view
from butterfly.node.offering import call_off, offer_model, place_of
from butterfly_cluster.apply import apply
from butterfly_cluster.commands import Command
from butterfly_cluster.offer_commands import OfferModel, WithdrawModel
from butterfly_cluster.state import ClusterState, ModelPlace
from butterfly_core.errors import NotServing, RequestError
from tests.support.clusters import active, committed, loading, node
from tests.support.offers import OFFERED, PLACE, PREPARING, READY, STAGES, SWITCH, prepared


class Log:
    """Applies what is proposed; ``first`` is committed before it."""

    def __init__(self, state: ClusterState, *first: Command) -> None:
        self.state, self._first = state, first

    async def propose(self, command: Command, *, timeout_seconds: float) -> int:
        for each in (*self._first, command):
            self.state = apply(self.state, self.state.index + 1, each)
        return self.state.index


async def offer(log: Log) -> int:
    return await offer_model(log, lambda: log.state, PLACE)


async def test_an_offer_gets_the_next_number_while_a_model_is_served() -> None:
    log = Log(active(2))
    assert await offer(log) == 1

    log = Log(committed([WithdrawModel(1, "no")], OFFERED))
    assert await offer(log) == 2
    assert log.state.open_offer is not None


async def test_a_cluster_that_cannot_take_an_offer_says_why() -> None:
    with pytest.raises(NotServing, match="loaded beside it"):
        await offer(Log(loading(2)))
    with pytest.raises(RequestError, match="s3://models/b is offered already"):
        await offer(Log(OFFERED))
    other = OfferModel(1, ModelPlace("s3", "s3://models/c"))
    with pytest.raises(RequestError, match="another one came first"):
        await offer(Log(active(2), other))


async def test_what_is_offered_can_be_called_off_until_it_has_taken_over() -> None:
    log = Log(READY)
    assert await call_off(log, lambda: log.state) == 1
    assert log.state.offer is not None
    assert log.state.offer.withdrawn == "a person called it off"
    with pytest.raises(RequestError, match="no model is offered now"):
        await call_off(log, lambda: log.state)
    late = Log(READY, SWITCH)
    with pytest.raises(RequestError, match="too late"):
        await call_off(late, lambda: late.state)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"source_type": "ftp", "source_path": "x"}, "source_type"),
        ({"source_type": "s3", "source_path": ""}, "source_path"),
        ({"source_type": "filesystem", "source_path": "models/b"}, "is not absolute"),
    ],
)
def test_what_names_no_place_is_refused(words: Mapping[str, str], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        place_of(words)


def test_a_place_has_the_words_of_the_configuration() -> None:
    words = {"source_type": "s3", "source_path": "s3://models/b", "name": "tiny"}

    assert place_of({**words, "endpoint_url": "http://127.0.0.1:9000"}) == PLACE


def test_the_status_tells_how_far_an_offer_is_and_how_it_ended() -> None:
    reports = {node(1): {"offer_bytes_done": 3, "offer_bytes_total": 4}, node(2): {}}

    def view(state: ClusterState) -> Mapping[str, object]:
        seen = offer_view(state, reports)
        assert seen is not None
        return seen

    assert offer_view(active(2), reports) is None
    assert view(OFFERED)["state"] == "reading"
    half = view(committed([prepared(STAGES[0])], PREPARING))
    assert (half["state"], half["nodes_prepared"], half["nodes"]) == ("preparing", 1, 2)
    assert (half["bytes_done"], half["bytes_total"], half["name"]) == (3, 4, "tiny")
    assert view(READY)["state"] == "switching"
    switched = view(committed([SWITCH], READY))
    assert (switched["state"], switched["epoch"], switched["bytes_total"]) == ("switched", 2, 0)
    withdrawn = view(committed([WithdrawModel(1, "it does not fit")], READY))
    assert (withdrawn["state"], withdrawn["reason"]) == ("withdrawn", "it does not fit")
