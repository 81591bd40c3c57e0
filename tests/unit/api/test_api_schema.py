"""Requests as clients write them, well and badly."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly.api.errors import BadRequest
from butterfly.api.schema import ChatBody, CompletionBody, read_body, template_messages
from butterfly.api.unsupported import NEUTRAL

HELLO = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> ChatBody:
    return read_body(json.dumps({"messages": HELLO, **fields}).encode(), ChatBody)


def completion(**fields: Any) -> CompletionBody:
    return read_body(json.dumps({"prompt": "Once", **fields}).encode(), CompletionBody)


def turns(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    body = chat(messages=list(messages))
    return [dict(turn) for turn in template_messages(body.messages, messages_max=10)]


def test_a_bare_chat_is_enough() -> None:
    body = chat()

    assert body.tokens_asked() is None
    assert body.stops == ()
    assert not body.include_usage


def test_fields_that_nobody_knows_are_ignored() -> None:
    assert chat(store=True, metadata={"a": "b"}, service_tier="auto", made_up=[1]).model is None


def test_null_means_not_said() -> None:
    names = ["temperature", "top_p", "seed", "stop", "n", "stream", "stream_options", "max_tokens"]

    assert chat(**dict.fromkeys(names)).temperature is None


def test_the_newer_name_for_max_tokens_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=7).tokens_asked() == 7
    assert chat(max_tokens=5).tokens_asked() == 5


@pytest.mark.parametrize(
    ("stop", "stops"), [("a", ("a",)), (["a", "b"], ("a", "b")), (None, ()), ([], ())]
)
def test_stop_is_one_string_or_several(stop: object, stops: tuple[str, ...]) -> None:
    assert chat(stop=stop).stops == stops


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Once", ["Once"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_is_text_or_token_ids_one_or_several(prompt: object, prompts: object) -> None:
    assert completion(prompt=prompt).prompts() == prompts


@pytest.mark.parametrize("prompt", [[1, "a"], [[1], 2], [["a"]], {"a": 1}, 5, [-1], [True], [1.5]])
def test_a_prompt_of_another_shape_is_refused(prompt: object) -> None:
    with pytest.raises(BadRequest) as refused:
        completion(prompt=prompt)
    assert refused.value.param == "prompt"


def test_an_empty_list_of_prompts_is_refused() -> None:
    with pytest.raises(BadRequest, match="empty list"):
        completion(prompt=[]).prompts()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 2.1),
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("max_tokens", 0),
        ("max_completion_tokens", -5),
        ("max_tokens", 1.5),
        ("max_tokens", "5"),
        ("max_tokens", True),
        ("n", 0),
        ("seed", 1 << 63),
        ("seed", "7"),
        ("stop", 5),
        ("stop", [1]),
        ("stream", "yes"),
        ("stream_options", {"include_usage": "yes"}),
        ("messages", []),
        ("messages", "Hi"),
        ("messages", [{"content": "no role"}]),
        ("model", 5),
    ],
)
def test_a_wrong_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        chat(**{field: value})
    assert refused.value.param == field
    assert field in str(refused.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(BadRequest, match="messages is missing") as refused:
        read_body(b"{}", ChatBody)
    assert refused.value.param == "messages"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"temperature": NaN, "prompt": "a"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        read_body(raw, ChatBody)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        read_body(raw, ChatBody)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*ChatBody.model_fields, *NEUTRAL]), JSON, max_size=5))
def test_any_values_are_read_or_refused(fields: dict[str, Any]) -> None:
    with suppress(BadRequest):
        body = chat(**fields)
        template_messages(body.messages, messages_max=100)
        body.template_kwargs()


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_an_unsupported_field_may_say_nothing_but_nothing_else(name: str) -> None:
    for neutral in NEUTRAL[name]:
        chat(**{name: neutral})
    with pytest.raises(BadRequest, match="not supported yet") as refused:
        chat(**{name: {"surely": "not neutral"}})
    assert refused.value.param == name


def test_zero_log_probabilities_are_a_wish_for_log_probabilities() -> None:
    with pytest.raises(BadRequest, match="logprobs"):
        completion(logprobs=0)


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]

    assert turns({"role": "user", "content": parts}) == [{"role": "user", "content": "a\nb"}]


def test_developer_is_system_and_a_name_stays() -> None:
    assert turns(
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": "Hi", "name": "ann"},
        {"role": "assistant", "content": "Hello"},
    ) == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Hi", "name": "ann"},
        {"role": "assistant", "content": "Hello"},
    ]


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "image_url"),
        ({"role": "user", "content": [{"text": "no type"}]}, "text only"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "text only"),
        ({"role": "user", "content": None}, "content is missing"),
        ({"role": "tool", "content": "42"}, "tool calls"),
        ({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, "tool calls"),
        ({"role": "robot", "content": "Hi"}, "must be system"),
    ],
)
def test_a_turn_that_cannot_be_read_is_refused(message: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRequest, match=told) as refused:
        turns({"role": "user", "content": "Hi"}, message)
    assert refused.value.param == "messages"
    assert "messages.1" in str(refused.value)


def test_too_many_turns_are_refused() -> None:
    with pytest.raises(BadRequest, match="11 messages; 10 at most"):
        turns(*(HELLO * 11))


def test_names_of_the_template_cannot_be_taken() -> None:
    assert chat(chat_template_kwargs={"enable_thinking": False}).template_kwargs() == {
        "enable_thinking": False
    }
    with pytest.raises(BadRequest, match="messages"):
        chat(chat_template_kwargs={"messages": []}).template_kwargs()


def test_effort_goes_to_the_template() -> None:
    assert chat(reasoning_effort="low").template_kwargs() == {"reasoning_effort": "low"}
