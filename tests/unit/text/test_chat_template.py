from typing import Any

import pytest

from butterfly_core.errors import ModelError, RequestError
from butterfly_text.chat_template import ChatTemplate, TemplateLimitReached, TemplateLimits

HELLO = [{"role": "user", "content": "hello"}]
SMALL = TemplateLimits(template_characters_max=500, output_characters_max=1000, steps_max=50)


def render(source: str, messages: Any = HELLO, **variables: Any) -> str:
    return ChatTemplate(source, SMALL).render(messages, tools=None, variables=variables)


def test_the_words_of_a_template_that_refuses_reach_the_caller() -> None:
    with pytest.raises(RequestError, match=r"^roles must alternate$"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize("source", ["{% for %}", "{{ 'open", "{% unknown %}", "{{ a | nothing }}"])
def test_a_template_that_is_no_program_is_the_models_fault(source: str) -> None:
    with pytest.raises(ModelError, match="chat template"):
        ChatTemplate(source)


def test_a_template_that_is_too_long_is_the_models_fault() -> None:
    with pytest.raises(ModelError, match="500 are allowed"):
        ChatTemplate(" " * 501, SMALL)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(60) %}{% endfor %}",
        "{% for a in range(10) %}{% for b in range(10) %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{{ m(n - 1) + m(n - 1) if n else '' }}{% endmacro %}{{ m(30) }}",
        "{% for a in 'abc' recursive %}{{ loop('abc') }}{% endfor %}",
        "{% for a in range(40) %}{{ 'x' * 40 }}{% endfor %}",
    ],
)
def test_a_template_that_runs_on_is_stopped(source: str) -> None:
    with pytest.raises(TemplateLimitReached, match="template"):
        render(source)


def test_a_limit_counts_one_rendering_not_all_of_them() -> None:
    template = ChatTemplate("{% for a in range(40) %}{{ a }}{% endfor %}", SMALL)

    first, second = (template.render(HELLO, tools=None, variables={}) for _ in range(2))

    assert first == second


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n.__init__ = 1 %}",
        "{{ 'x' * 100000 }}",
        "{{ [1] * 100000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%99999d' % 1 }}",
        "{{ range(1000000) }}",
        "{% include 'secrets' %}",
        "{{ missing.field }}",
        "{{ 1 // 0 }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages | tojson(indent=messages) }}",
    ],
)
def test_what_a_template_must_not_or_cannot_do_is_an_error_of_the_request(source: str) -> None:
    with pytest.raises(RequestError, match=r"cannot render these messages"):
        render(source)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{% for m in [1] %}\n  {% if true %}\n{{ m }}\n  {% endif %}\n{% endfor %}", "1\n"),
        ("{{ {'b': '<é>', 'a': 1} | tojson }}", '{"b": "<é>", "a": 1}'),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{% for i in [1, 2] %}{{ loop.last }} {% else %}none{% endfor %}", "False True "),
        ("{% for i in [] %}{{ i }}{% else %}none{% endfor %}", "none"),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "hello"),
        ("{{ dict(a=2 ** 3, b=7 % 4, c=2 * 'x') }}", "{'a': 8, 'b': 3, 'c': 'xx'}"),
        ("{{ '%02d of %s' % (3, 'x') }}", "03 of x"),
        ("{{ tools is none }} {{ documents is none }} {{ nothing is defined }}", "True True False"),
        ("{{ strftime_now('%Y') | length }}", "4"),
    ],
)  # fmt: skip
def test_a_template_may_do_what_it_may_do_in_transformers(source: str, shown: str) -> None:
    assert render(source) == shown


def test_null_fields_are_as_if_they_were_not_there() -> None:
    messages = [{"role": "assistant", "content": None, "tool_calls": None}]

    assert render("{{ messages[0] }}", messages) == "{'role': 'assistant'}"


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_found_under_the_names_that_templates_read(name: str) -> None:
    messages = [{"role": "assistant", "content": "a", name: "because"}]

    shown = render("{{ messages[0].reasoning_content + messages[0].thinking }}", messages)

    assert shown == "becausebecause"


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "message", ["text", 3, {"content": object()}, {"content": deep(80)}, {1: "number"}]
)
def test_messages_hold_plain_data_only(message: object) -> None:
    with pytest.raises(RequestError):
        render("{{ messages }}", [message])


def test_messages_of_the_caller_stay_as_they_are() -> None:
    messages = [{"role": "user", "content": ["a"], "name": None}]

    render("{% for m in messages %}{{ m }}{% endfor %}", messages)

    assert messages == [{"role": "user", "content": ["a"], "name": None}]
