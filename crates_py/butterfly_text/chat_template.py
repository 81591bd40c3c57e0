"""Renders a chat template as transformers does, in a sandbox and within limits.

A template is a program that came with a checkpoint, so it is not trusted: it sees plain data only,
cannot change it, and is stopped after ``steps_max`` rounds of its loops and macros or
``output_characters_max`` characters. The limits stop runaway programs; they are no proof against
one written to use up memory.

Source of the settings: ``transformers.utils.chat_template_utils`` (trim_blocks, lstrip_blocks,
loopcontrols, the ``generation`` tag, ``raise_exception``, ``strftime_now``, its ``tojson``).
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from butterfly_core.errors import ModelError, RequestError

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
NESTING_MAX = 64
POWER_MAX = 64
WIDE_FIELD = re.compile(r"\*|\d{4}")


@dataclass(frozen=True, slots=True)
class TemplateLimits:
    """How large a template and its output may be, and how long it may run."""

    template_characters_max: int = 1_000_000
    output_characters_max: int = 8_000_000
    steps_max: int = 200_000


class TemplateLimitReached(RequestError):
    """A chat template ran longer, or wrote more, than it may."""


class _Refusal(jinja2.TemplateError):
    """The template itself refused the messages, with ``raise_exception``."""


class ChatTemplate:
    """One compiled template. Raises ModelError if it is no valid template."""

    def __init__(self, source: str, limits: TemplateLimits | None = None) -> None:
        self._limits = limits or TemplateLimits()
        if len(source) > self._limits.template_characters_max:
            raise ModelError(
                f"the chat template has {len(source)} characters; "
                f"{self._limits.template_characters_max} are allowed"
            )
        environment = _Environment(self._limits)
        try:
            tree = environment.parse(source)
            _count_steps(tree, environment)
            self._template = environment.from_string(tree)
        except (jinja2.TemplateError, RecursionError, SyntaxError) as error:
            raise ModelError(f"the chat template of the model is not valid: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str:
        """The prompt as text. Raises RequestError with the template's own words."""
        chat = [_with_reasoning(message) for message in plain(messages)]
        context = {**plain(variables), "messages": chat, "tools": plain(tools)}
        context.setdefault("documents", None)
        steps = _steps.set(0)
        try:
            return self._joined(context)
        except _Refusal as error:
            raise RequestError(str(error.message)) from error
        except (
            jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError,
            TypeError, ValueError,
        ) as error:  # fmt: skip
            raise RequestError(
                f"the model's chat template cannot render these messages: {error}; check the "
                "roles, their order, and that each content is a string"
            ) from error
        finally:
            _steps.reset(steps)

    def _joined(self, context: Mapping[str, Any]) -> str:
        pieces: list[str] = []
        characters = 0
        for piece in self._template.generate(context):
            characters += len(piece)
            if characters > self._limits.output_characters_max:
                raise TemplateLimitReached(
                    "the chat template wrote more than "
                    f"{self._limits.output_characters_max} characters; send shorter messages"
                )
            pieces.append(piece)
        return "".join(pieces)


def plain(value: Any, depth: int = 0) -> Any:
    """A copy of ``value`` out of JSON's types alone. Raises RequestError for anything else."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth > NESTING_MAX:
        raise RequestError(f"messages and tools may be nested {NESTING_MAX} deep at most")
    if isinstance(value, Mapping):
        return {_key(name): plain(inner, depth + 1) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner, depth + 1) for inner in value]
    raise RequestError(
        f"a chat template reads strings, numbers, lists and objects, not {type(value).__name__}"
    )


def _key(name: object) -> str:
    if type(name) is str:
        return name
    raise RequestError(f"the names in messages and tools are strings, not {type(name).__name__}")


def _with_reasoning(message: object) -> dict[str, Any]:
    """Without the fields that are null, and with reasoning under each name that templates read."""
    if not isinstance(message, dict):
        raise RequestError("each message is an object with role and content")
    kept = {name: value for name, value in message.items() if value is not None}
    reasoning = next((kept[name] for name in REASONING_FIELDS if name in kept), None)
    if reasoning is None:
        return kept
    return {"thinking": reasoning, **kept, "reasoning_content": reasoning}


_steps: ContextVar[int] = ContextVar("steps of the template that renders in this context")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of transformers, plus a count of steps and a bound on repetition."""

    intercepted_binops = frozenset(["*", "**", "%"])

    def __init__(self, limits: TemplateLimits) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, "jinja2.ext.loopcontrols"],
        )
        self._limits = limits
        self.filters["tojson"] = _to_json
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _make_dict,
            "namespace": _GuardedNamespace,
        }

    def count_step(self) -> None:
        """Called by each round of a loop and each call of a macro."""
        steps = _steps.get(0) + 1
        if steps > self._limits.steps_max:
            raise TemplateLimitReached(
                f"the chat template took more than {self._limits.steps_max} steps; "
                "send fewer messages or tools"
            )
        _steps.set(steps)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse ``'a' * 10**9`` and ``10**10**10`` before they fill the memory."""
        if operator == "*":
            sizes = [len(side) for side in (left, right) if isinstance(side, (str, list, tuple))]
            times = [side for side in (left, right) if isinstance(side, int)]
            if sizes and times and sizes[0] * times[0] > self._limits.output_characters_max:
                raise SecurityError("a repetition is too long")
        if operator == "**" and (abs(left) > POWER_MAX or right > POWER_MAX):
            raise SecurityError("a power is too large")
        if operator == "%" and isinstance(left, str) and WIDE_FIELD.search(left):
            raise SecurityError("a format is too wide")
        return super().call_binop(context, operator, left, right)


class _GenerationTag(Extension):
    """``{% generation %}``: marks what the assistant wrote; for rendering it is a mere scope."""

    tags = {"generation"}  # noqa: RUF012 - jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _GuardedNamespace(Namespace):
    """A namespace without names that lead to Python's insides."""

    # Methods of a namespace cannot be reached through ``self``: its fields hide them.
    def __init__(self, *args: Any, **fields: Any) -> None:
        for name in dict(*args, **fields):
            _refuse_private_name(name)
        super().__init__(*args, **fields)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private_name(name)
        super().__setitem__(name, value)


def _refuse_private_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")


def _count_steps(tree: nodes.Template, environment: jinja2.Environment) -> None:
    """Let each loop and macro of the program begin with a call of ``count_step``."""
    blocks: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
        *tree.find_all(nodes.For),
        *tree.find_all(nodes.Macro),
        *tree.find_all(nodes.CallBlock),
    ]
    for block in blocks:
        count = nodes.Call(nodes.EnvironmentAttribute("count_step"), [], [], None, None)
        step = nodes.ExprStmt(count, lineno=block.lineno)
        block.body.insert(0, step.set_environment(environment))


def _raise_exception(message: object) -> None:
    raise _Refusal(str(message))


def _strftime_now(form: str) -> str:
    # Local time without a zone, as transformers has it: templates print the date for the model.
    return datetime.now().strftime(form)  # noqa: DTZ005


def _make_dict(*args: Any, **fields: Any) -> dict[Any, Any]:
    return dict(*args, **fields)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on: without the HTML escapes of jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
