"""Fields of the OpenAI and vLLM APIs that would change the answer and are not supported yet.

A client may send any of them with its neutral value (many do). Any other value is refused: to
ignore it would give an answer to a question nobody asked. Fields that only hint (``user``,
``store``, ``metadata``, ``service_tier``, ``prediction`` …) are not listed and are ignored.
"""

from collections.abc import Mapping
from typing import Any

from butterfly.api.errors import BadRequest

_OFF = (None, False)
_NONE = (None,)
_EMPTY: tuple[Any, ...] = (None, [], {}, "")
_ZERO = (None, 0)
_ONE = (None, 1)

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_generation_prompt": (None, True),
    "allowed_token_ids": _EMPTY,
    "audio": _NONE,
    "bad_words": _EMPTY,
    "best_of": _ONE,
    "continue_final_message": _OFF,
    "documents": _EMPTY,
    "echo": _OFF,
    "frequency_penalty": _ZERO,
    "function_call": (None, "none", "auto"),
    "functions": _EMPTY,
    "guided_choice": _NONE,
    "guided_grammar": _NONE,
    "guided_json": _NONE,
    "guided_regex": _NONE,
    "include_stop_str_in_output": _OFF,
    "length_penalty": _ONE,
    "logit_bias": _EMPTY,
    "logprobs": _OFF,
    "min_p": _ZERO,
    "min_tokens": _ZERO,
    "modalities": (None, [], ["text"]),
    "presence_penalty": _ZERO,
    "prompt_embeds": _NONE,
    "prompt_logprobs": _NONE,
    "repetition_penalty": _ONE,
    "response_format": (None, {"type": "text"}),
    "structured_outputs": _NONE,
    "suffix": _EMPTY,
    "tool_choice": (None, "none", "auto"),
    "tools": _EMPTY,
    "top_logprobs": _ZERO,
    "truncate_prompt_tokens": _NONE,
    "use_beam_search": _OFF,
    "web_search_options": _NONE,
}


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Raise BadRequest for the first field that asks for what is not supported."""
    for name, neutral in NEUTRAL.items():
        if name in body and not _is_one_of(body[name], neutral):
            raise BadRequest(
                f"{name} is not supported yet; leave it out or send {_told(neutral)}",
                param=name,
                code="unsupported_parameter",
            )


def _is_one_of(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Equality that knows False from 0: ``logprobs: 0`` asks for log-probabilities."""
    return any(
        value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
        for allowed in neutral
    )


def _told(neutral: tuple[Any, ...]) -> str:
    named = [repr(value) for value in neutral if value is not None]
    return " or ".join(["null", *named])
