"""From a request to sequences of token ids."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly.api.ask import ANSWER_TOKENS_DEFAULT, Ask, compile_ask
from butterfly.api.errors import BadRequest
from butterfly.api.limits import ApiLimits
from butterfly.api.schema import ChatBody, CompletionBody, read_body
from butterfly_core.errors import RequestError
from tests.support.api_fakes import EOS, CharacterText

LIMITS = ApiLimits()


def ask_completion(
    prompts: list[list[int]],
    text: CharacterText | None = None,
    limits: ApiLimits = LIMITS,
    **fields: Any,
) -> Ask:
    body = read_body(json.dumps({"prompt": "unused", **fields}).encode(), CompletionBody)
    return compile_ask(
        body, prompts, text or CharacterText(), limits, request_id="cmpl-1", random_seed=99
    )


def ask_chat(prompt: list[int], text: CharacterText | None = None, **fields: Any) -> Ask:
    hello = [{"role": "user", "content": "unused"}]
    body = read_body(json.dumps({"messages": hello, **fields}).encode(), ChatBody)
    return compile_ask(
        body, [prompt], text or CharacterText(), LIMITS, request_id="chatcmpl-1", random_seed=99
    )


def test_a_chat_may_fill_the_context_and_a_completion_gets_sixteen_tokens() -> None:
    assert ask_chat([1] * 48).sequences[0].tokens_max == 2000
    assert ask_completion([[1] * 48]).sequences[0].tokens_max == 16
    assert ask_completion([[1] * 2040]).sequences[0].tokens_max == 8


def test_a_model_without_a_known_context_has_a_default() -> None:
    text = CharacterText(context_length=None)

    assert ask_chat([1], text).sequences[0].tokens_max == ANSWER_TOKENS_DEFAULT


def test_the_smaller_of_model_and_cluster_bounds_the_context() -> None:
    limits = ApiLimits(context_tokens_max=100)

    assert ask_completion([[1] * 90], limits=limits).sequences[0].tokens_max == 10


@pytest.mark.parametrize(
    ("prompt", "fields", "numbers"),
    [
        (2048, {}, ["2048 tokens", "needs 2049", "2048 in the prompt"]),
        (2000, {"max_tokens": 49}, ["2048 tokens", "needs 2049", "2000 in the prompt, 49 for"]),
    ],
)
def test_what_the_context_cannot_hold_is_refused_with_numbers(
    prompt: int, fields: dict[str, Any], numbers: list[str]
) -> None:
    with pytest.raises(BadRequest) as refused:
        ask_chat([1] * prompt, **fields)
    assert all(number in str(refused.value) for number in numbers)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"


@given(st.integers(1, 3000), st.none() | st.integers(1, 3000))
def test_prompt_and_answer_never_pass_the_context(prompt: int, asked: int | None) -> None:
    try:
        ask = ask_chat([1] * prompt, max_tokens=asked)
    except BadRequest:
        assert prompt + (asked or 1) > 2048
    else:
        assert prompt + ask.sequences[0].tokens_max <= 2048
        assert asked in (None, ask.sequences[0].tokens_max)


def test_an_id_outside_the_vocabulary_is_refused() -> None:
    text = CharacterText(vocabulary_size=100)

    ask_completion([[99]], text)
    with pytest.raises(BadRequest, match="token id 100; this model's ids are 0 to 99"):
        ask_completion([[5], [7, 100, 3]], text)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(BadRequest, match="no tokens"):
        ask_completion([[]])


def test_the_clients_seed_is_used_and_else_a_random_one() -> None:
    assert ask_chat([1], seed=5).sequences[0].sampling.seed == 5
    assert ask_chat([1]).sequences[0].sampling.seed == 99


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(1, 5))
def test_any_seed_of_the_api_is_one_of_the_engine(seed: int, answers: int) -> None:
    ask = ask_chat([1], seed=seed, n=answers)

    assert len({sequence.sampling.seed for sequence in ask.sequences}) == answers


def test_defaults_come_from_the_model() -> None:
    text = CharacterText(generation_defaults={"temperature": 0.6, "top_k": 20, "top_p": None})

    sampling = ask_chat([1], text).sequences[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.6, 1.0, 20)
    sampling = ask_chat([1], text, temperature=0, top_p=0.5, top_k=-1).sequences[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 0)


def test_end_tokens_stop_unless_they_shall_be_ignored() -> None:
    plain = ask_chat([1], stop_token_ids=[7]).sequences[0]
    ignoring = ask_chat([1], stop_token_ids=[7], ignore_eos=True).sequences[0]

    assert (plain.stop_token_ids, plain.ignore_eos) == ((EOS, 7), False)
    assert (ignoring.stop_token_ids, ignoring.ignore_eos) == ((7,), True)


def test_each_prompt_gets_n_answers_in_order_with_ids_of_their_own() -> None:
    ask = ask_completion([[1, 2], [3]], n=2)

    assert [sequence.prompt for sequence in ask.sequences] == [(1, 2), (1, 2), (3,), (3,)]
    ids = [sequence.request_id for sequence in ask.sequences]
    assert ids == ["cmpl-1", "cmpl-1-1", "cmpl-1-2", "cmpl-1-3"]
    assert ask.prompt_tokens == 3


def test_too_many_answers_are_refused() -> None:
    with pytest.raises(BadRequest, match="64 answers per request"):
        ask_completion([[1]] * 13, n=5)


@pytest.mark.parametrize("stop", [["a"] * 5, [""], ["x" * 2000]])
def test_stop_strings_have_limits(stop: list[str]) -> None:
    with pytest.raises(BadRequest) as refused:
        ask_chat([1], stop=stop)
    assert refused.value.param == "stop"


def test_a_model_with_impossible_defaults_is_told() -> None:
    with pytest.raises(RequestError, match="temperature is 9"):
        ask_chat([1], CharacterText(generation_defaults={"temperature": 9}))
