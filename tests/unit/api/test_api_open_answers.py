"""How many requests, and how they end when the node does."""

import pytest

from butterfly.api.errors import TooManyRequests
from butterfly.api.open_answers import OpenAnswers
from butterfly_core.errors import ButterflyError, NotServing


class Open:
    """An answer that remembers how it was broken off."""

    def __init__(self) -> None:
        self.errors: list[ButterflyError] = []

    def interrupt(self, error: ButterflyError) -> None:
        self.errors.append(error)


async def test_requests_are_admitted_up_to_the_limit_and_places_come_back() -> None:
    answers = OpenAnswers(2)
    with answers.admitted(), answers.admitted():
        assert answers.requests == 2
        with pytest.raises(TooManyRequests), answers.admitted():
            pass
    assert answers.requests == 0
    with answers.admitted():
        pass


async def test_a_request_that_fails_gives_its_place_back() -> None:
    answers = OpenAnswers(1)
    with pytest.raises(ValueError, match="it failed"), answers.admitted():
        raise ValueError("it failed")
    assert answers.requests == 0


async def test_closing_refuses_new_requests_and_breaks_off_old_ones() -> None:
    answers, old, late = OpenAnswers(9), Open(), Open()
    with answers.admitted(), answers.tracked(old):
        answers.interrupt_all()
        with answers.tracked(late):
            pass
        with pytest.raises(NotServing) as refused, answers.admitted():
            pass
    assert refused.value.phase == "draining"
    assert [len(each.errors) for each in (old, late)] == [1, 1]


async def test_waiting_ends_when_the_last_request_does() -> None:
    answers = OpenAnswers(9)
    assert await answers.wait_until_done(0)
    with answers.admitted():
        assert not await answers.wait_until_done(0)
    assert await answers.wait_until_done(0)
