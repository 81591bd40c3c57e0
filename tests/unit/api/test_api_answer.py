"""Token ids to text, side by side, to whatever end."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly.api.answer import Answer, Assembly, Piece
from butterfly.api.ask import Ask
from butterfly.api.errors import InternalError
from butterfly.api.limits import ApiLimits
from butterfly.api.streaming import collect_answer
from butterfly_core.errors import EngineLost, NotServing
from butterfly_core.generation import FinishReason, GenerationRequest, TokensEmitted
from tests.support.api_fakes import EOS, CharacterDetokenizer, CharacterText, FakeServing


@dataclass
class Watch:
    """Remembers what it is told."""

    told: list[tuple[Any, ...]] = field(default_factory=list)

    def request_ended(self, route: str, method: str, status: int, seconds: float) -> None:
        self.told.append(("request", route, status))

    def answer_started(self) -> None:
        self.told.append(("started",))

    def first_token(self, seconds: float) -> None:
        self.told.append(("first", seconds))

    def answer_ended(self, finish: str, prompt_tokens: int, generated_tokens: int) -> None:
        self.told.append(("ended", finish, prompt_tokens, generated_tokens))


def request_of(request_id: str = "r", **fields: Any) -> GenerationRequest:
    fields = {"tokens_max": 100, "stop_token_ids": (EOS,), **fields}
    return GenerationRequest(request_id, prompt=(1, 2), **fields)


def answer_of(
    serving: FakeServing,
    *,
    count: int = 1,
    stops: tuple[str, ...] = (),
    watch: Watch | None = None,
    limits: ApiLimits | None = None,
    clock: Any = lambda: 0.0,
) -> Answer:
    ask = Ask("r", tuple(request_of(f"r-{i}") for i in range(count)), stops, True, 2)
    return Answer(ask, serving, CharacterText(), limits or ApiLimits(), watch or Watch(), clock)


async def whole(answer: Answer, count: int = 1) -> list[Piece]:
    async with answer:
        return await collect_answer(answer, count, wait_seconds=5)


def assembled(
    batches: Sequence[str], finish: FinishReason | None, stops: tuple[str, ...] = ()
) -> tuple[str, str | None, int]:
    """Feed the batches, the last with the finish; the text, the end and the tokens."""
    assembly, text = Assembly(request_of(), CharacterDetokenizer(), stops), ""
    for number, batch in enumerate(batches, start=1):
        last = finish if number == len(batches) else None
        piece = assembly.push(0, TokensEmitted("r", tuple(map(ord, batch)), last))
        text += piece.text
        if piece.finish:
            return text, piece.finish, assembly.tokens
    return text, None, assembly.tokens


def test_text_is_what_the_tokens_say() -> None:
    assert assembled(["ab", "c", "de"], FinishReason.LENGTH) == ("abcde", "length", 5)


def test_a_stop_token_is_counted_and_not_shown() -> None:
    assert assembled(["ab", chr(EOS)], FinishReason.STOP) == ("ab", "stop", 3)


@pytest.mark.parametrize(
    "batches", [["Hello"], ["Hel", "lo"], ["H", "e", "l", "l", "o"], ["He", "llo"]]
)
def test_a_stop_string_is_found_across_the_borders_of_tokens(batches: list[str]) -> None:
    text, finish, tokens = assembled(batches, FinishReason.LENGTH, ("ll",))

    assert (text, finish, tokens) == ("He", "stop", 4)


def test_the_beginning_of_a_stop_string_comes_out_when_it_was_none() -> None:
    assert assembled(["Hel"], FinishReason.LENGTH, ("ll",)) == ("Hel", "length", 3)
    assert assembled(["Hel", "p"], FinishReason.LENGTH, ("ll",)) == ("Help", "length", 4)


@given(
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), max_size=3),
)
def test_text_ends_before_the_first_stop_string_however_tokens_fall(
    batches: list[str], stops: list[str]
) -> None:
    text, finish, _ = assembled(batches, FinishReason.LENGTH, tuple(stops))
    everything = "".join(batches)

    assert everything.startswith(text)
    assert not any(stop in text for stop in stops)
    assert (finish == "stop") == any(stop in everything for stop in stops)
    assert finish == "stop" or text == everything


@pytest.mark.parametrize("finish", [FinishReason.ERROR, FinishReason.CANCELLED])
def test_an_end_that_is_none_is_an_error(finish: FinishReason) -> None:
    with pytest.raises(EngineLost, match="after 2 tokens"):
        assembled(["ab", "c"], finish)


async def test_an_answer_comes_whole_and_is_counted() -> None:
    watch = Watch()

    pieces = await whole(answer_of(FakeServing("abc"), watch=watch))

    assert pieces == [Piece(0, "abc", "stop")]
    assert watch.told == [("started",), ("first", 0.0), ("ended", "stop", 2, 4)]


async def test_choices_run_side_by_side() -> None:
    serving = FakeServing("abc", gate=asyncio.Event())
    answer = answer_of(serving, count=3)
    async with answer:
        await serving.until_running(3)
        assert serving.gate is not None
        serving.gate.set()
        pieces = await collect_answer(answer, 3, wait_seconds=5)

    assert pieces == [Piece(i, "abc", "stop") for i in range(3)]
    assert answer.generated_tokens == 12


async def test_leaving_cancels_what_still_runs() -> None:
    serving, watch = FakeServing("abc", gate=asyncio.Event()), Watch()
    async with answer_of(serving, count=2, watch=watch) as answer:
        assert (await answer.next_pieces(5))[0].text == "a"

    assert serving.running == 0
    assert sorted(serving.closed) == ["r-0", "r-1"]
    assert watch.told[-1][:2] == ("ended", "cancelled")


async def test_a_stop_string_closes_the_generation_at_once() -> None:
    serving = FakeServing("abcdef" * 100)

    pieces = await whole(answer_of(serving, stops=("cd",)))

    assert pieces == [Piece(0, "ab", "stop")]
    assert serving.closed == ["r-0"]


async def test_silence_is_a_timeout_and_no_end() -> None:
    serving = FakeServing("ab", gate=asyncio.Event())
    async with answer_of(serving) as answer:
        await answer.next_pieces(5)
        with pytest.raises(TimeoutError):
            await answer.next_pieces(0)
        assert serving.gate is not None
        serving.gate.set()
        assert (await answer.next_pieces(5))[0].text == "b"


async def test_an_answer_without_an_end_is_lost_not_short() -> None:
    with pytest.raises(EngineLost, match="without a reason"):
        await whole(answer_of(FakeServing("abc", ends=False)))


async def test_what_the_cluster_refuses_is_passed_on() -> None:
    serving, watch = FakeServing("abc", fail_after=0), Watch()
    serving.failure = NotServing("electing", phase="election")

    with pytest.raises(NotServing):
        await whole(answer_of(serving, watch=watch))
    assert watch.told[-1] == ("ended", "error", 2, 0)


async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    times = iter([0.0, 11.0])
    answer = answer_of(
        FakeServing("abc"),
        limits=ApiLimits(answer_timeout_seconds=10),
        clock=lambda: next(times, 11.0),
    )

    with pytest.raises(EngineLost, match="longer than 10 s"):
        await whole(answer)


async def test_an_interrupted_answer_says_why_even_to_a_slow_client() -> None:
    serving = FakeServing("x" * 100)
    async with answer_of(serving, limits=ApiLimits(pieces_buffered_max=2)) as answer:
        await answer.next_pieces(5)
        answer.interrupt(NotServing("closing", phase="draining"))
        for _ in range(2):
            with pytest.raises(NotServing):
                await answer.next_pieces(5)

    assert serving.running == 0


async def test_text_from_before_an_error_comes_before_it() -> None:
    serving = FakeServing("abc", fail_after=2, failure=EngineLost("died"))
    async with answer_of(serving) as answer:
        await serving.until_running(1)
        await serving.until_idle()
        assert "".join(piece.text for piece in await answer.next_pieces(5)) == "ab"
        with pytest.raises(EngineLost, match="died"):
            await answer.next_pieces(5)


class Broken(FakeServing):
    """A bug, not an error on purpose."""

    async def _tokens(self, request: GenerationRequest) -> AsyncIterator[TokensEmitted]:
        yield TokensEmitted(request.request_id, (97,))
        raise ZeroDivisionError("a secret detail")


async def test_a_bug_is_an_error_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InternalError) as told:
        await whole(answer_of(Broken()))
    assert "secret detail" not in str(told.value)
    assert "ZeroDivisionError" in caplog.text
