"""What one HTTP request asks of the engine, in token ids. Pure.

Defaults come from the request, then from the model's ``generation_config.json``, then from
OpenAI's API. The i-th of ``n`` answers to a prompt is drawn with seed + i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from butterfly.api.errors import BadRequest
from butterfly.api.limits import ApiLimits
from butterfly.api.schema import GenerationBody
from butterfly.api.views import TextModelLike
from butterfly_core.generation import GenerationRequest, SamplingParams

ANSWER_TOKENS_DEFAULT = 4096
"""Only for a model that does not say how long its context is."""
_SEED_MASK = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Ask:
    """The sequences to generate, in the order of the answer's choices."""

    request_id: str
    sequences: tuple[GenerationRequest, ...]
    stops: tuple[str, ...]
    skip_special_tokens: bool
    prompt_tokens: int
    """Each prompt counted once, however many answers it gets (as OpenAI counts)."""


def compile_ask(
    body: GenerationBody,
    prompts: Sequence[Sequence[int]],
    text: TextModelLike,
    limits: ApiLimits,
    *,
    request_id: str,
    random_seed: int,
    model: str = "",
) -> Ask:
    """Turn a checked request and its encoded prompts into sequences. Raises RequestError."""
    answers = body.n or 1
    if len(prompts) * answers > limits.choices_max:
        raise BadRequest(
            f"{len(prompts)} prompts with {answers} answers each; {limits.choices_max} answers "
            "per request at most",
            param="n",
        )
    stops = _checked_stops(body, limits)
    ignore_eos = body.ignore_eos is True
    stop_ids = (*(() if ignore_eos else text.eos_token_ids), *(body.stop_token_ids or ()))
    seed = (random_seed if body.seed is None else body.seed) & _SEED_MASK
    sequences: list[GenerationRequest] = []
    for prompt in prompts:
        prompt_ids = tuple(prompt)
        _check_ids(prompt_ids, text.vocabulary_size)
        tokens_max = _tokens_max(body, len(prompt), _context(text, limits))
        for answer in range(answers):
            index = len(sequences)
            sequences.append(
                GenerationRequest(
                    request_id=request_id if index == 0 else f"{request_id}-{index}",
                    prompt=prompt_ids,
                    tokens_max=tokens_max,
                    sampling=_sampling(body, text, (seed + answer) & _SEED_MASK),
                    stop_token_ids=stop_ids,
                    ignore_eos=ignore_eos,
                    model=model,
                )
            )
    return Ask(
        request_id=request_id,
        sequences=tuple(sequences),
        stops=stops,
        skip_special_tokens=body.skip_special_tokens is not False,
        prompt_tokens=sum(len(prompt) for prompt in prompts),
    )


def _check_ids(prompt: tuple[int, ...], vocabulary_size: int) -> None:
    """An id without a row in the embedding would stop the engine, not the request."""
    if prompt and max(prompt) >= vocabulary_size:
        raise BadRequest(
            f"prompt holds the token id {max(prompt)}; this model's ids are 0 to "
            f"{vocabulary_size - 1}",
            param="prompt",
        )


def _sampling(body: GenerationBody, text: TextModelLike, seed: int) -> SamplingParams:
    defaults = text.generation_defaults

    def chosen(given: float | None, name: str, otherwise: float) -> float:
        if given is not None:
            return given
        default = defaults.get(name)
        return otherwise if default is None else float(default)

    return SamplingParams(
        temperature=chosen(body.temperature, "temperature", 1.0),
        top_p=chosen(body.top_p, "top_p", 1.0),
        top_k=max(0, int(chosen(body.top_k, "top_k", 0))),
        seed=seed,
    )


def _checked_stops(body: GenerationBody, limits: ApiLimits) -> tuple[str, ...]:
    stops = body.stops
    if len(stops) > limits.stop_strings_max:
        raise BadRequest(
            f"stop has {len(stops)} strings; {limits.stop_strings_max} at most", param="stop"
        )
    longest = limits.stop_string_characters_max
    if any(not stop or len(stop) > longest for stop in stops):
        raise BadRequest(f"each stop string needs 1 to {longest} characters", param="stop")
    return stops


def _context(text: TextModelLike, limits: ApiLimits) -> int | None:
    known = [size for size in (text.context_length, limits.context_tokens_max) if size is not None]
    return min(known, default=None)


def _tokens_max(body: GenerationBody, prompt_tokens: int, context: int | None) -> int:
    where = body.prompt_field
    if prompt_tokens == 0:
        raise BadRequest("The prompt has no tokens; send some text", param=where)
    asked, default = body.tokens_asked(), body.answer_tokens_default
    if context is None:
        return asked or default or ANSWER_TOKENS_DEFAULT
    room = context - prompt_tokens
    if room < (asked or 1):
        answer = f"{asked} for the answer" if asked else "at least 1 for the answer"
        raise BadRequest(
            f"This model's context is {context} tokens; this request needs "
            f"{prompt_tokens + (asked or 1)} ({prompt_tokens} in the prompt, {answer}). "
            "Shorten the prompt or ask for fewer tokens.",
            param=where,
            code="context_length_exceeded",
        )
    return asked or min(room, default or room)
