"""Requests as clients write them: read once at the edge, checked, then plain values.

Names and ranges are OpenAI's (chat completions, completions) with vLLM's additions ``top_k``,
``ignore_eos``, ``stop_token_ids``, ``skip_special_tokens``, ``add_special_tokens`` and
``chat_template_kwargs``. Unknown fields are ignored, since clients send many.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from butterfly.api.errors import BadRequest
from butterfly.api.unsupported import refuse_unsupported

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Count = Annotated[int, Field(ge=1, lt=1 << 31)]

Body = TypeVar("Body", bound="GenerationBody")

_TEMPLATE_NAMES_TAKEN = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
)


class StreamOptions(BaseModel):
    """What a stream says beside the text."""

    model_config = ConfigDict(frozen=True, strict=True)

    include_usage: bool | None = None


class GenerationBody(BaseModel):
    """What chat and completion have in common."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")
    answer_tokens_default: ClassVar[int | None] = None
    """When the request does not say; None is all that the context holds."""
    prompt_field: ClassVar[str] = "prompt"

    model: str | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    user: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def include_usage(self) -> bool:
        """True when the stream shall end with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage is True

    def tokens_asked(self) -> int | None:
        """How many tokens the client says the answer may have."""
        return self.max_tokens


class Message(BaseModel):
    """One turn of a chat, as written."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    function_call: dict[str, Any] | None = None


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    prompt_field: ClassVar[str] = "messages"

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None

    def tokens_asked(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def template_kwargs(self) -> dict[str, Any]:
        """Extra names for the chat template. Raises BadRequest for the names it already has."""
        given = dict(self.chat_template_kwargs or {})
        if taken := sorted(_TEMPLATE_NAMES_TAKEN & given.keys()):
            raise BadRequest(
                f"chat_template_kwargs may not set {taken[0]!r}", param="chat_template_kwargs"
            )
        if self.reasoning_effort is not None:
            given.setdefault("reasoning_effort", self.reasoning_effort)
        return given


class CompletionBody(GenerationBody):
    """``POST /v1/completions``."""

    answer_tokens_default: ClassVar[int | None] = 16

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    add_special_tokens: bool | None = None

    def prompts(self) -> list[str] | list[list[int]]:
        """Each prompt as text, or each as token ids. Raises BadRequest when there is none."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        texts = [each for each in prompt if isinstance(each, str)]
        lists = [each for each in prompt if isinstance(each, list)]
        ids = [each for each in prompt if isinstance(each, int)]
        if not prompt:
            raise BadRequest("prompt is an empty list; send text or token ids", param="prompt")
        return texts or lists or [ids]


def read_body(raw: bytes, kind: type[Body]) -> Body:
    """Parse and check a request. Raises BadRequest that names the field."""
    try:
        parsed = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise BadRequest(f"The request body is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise BadRequest("The request body must be a JSON object")
    refuse_unsupported(parsed)
    try:
        return kind.model_validate(parsed)
    except ValidationError as error:
        raise _bad_request(error) from None


def _bad_request(error: ValidationError) -> BadRequest:
    """The first wrong field and what is allowed there (each way, where there are several)."""
    found = error.errors(include_url=False, include_context=False)
    param = str(found[0]["loc"][0])
    if found[0]["type"] == "missing":
        where = ".".join(str(part) for part in found[0]["loc"])
        return BadRequest(f"{where} is missing", param=param, code="missing_required_parameter")
    told = [f"{_inner(each['loc'])}{each['msg']}" for each in found if str(each["loc"][0]) == param]
    ways = "; or: ".join(dict.fromkeys(told[:4]))
    seen = _shown(found[0]["input"])
    return BadRequest(f"{param} is {seen}: {ways}", param=param, code="invalid_value")


def _inner(location: tuple[int | str, ...]) -> str:
    inner = ".".join(str(part) for part in location[1:])
    return f"({inner}) " if inner else ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def template_messages(messages: list[Message], *, messages_max: int) -> list[Mapping[str, Any]]:
    """The turns as a chat template reads them: role and text.

    ``developer`` is OpenAI's newer name for ``system``; templates know only the older one.
    Raises BadRequest for images, sound, files, tool calls and their results.
    """
    if len(messages) > messages_max:
        raise BadRequest(f"{len(messages)} messages; {messages_max} at most", param="messages")
    return [_template_message(index, message) for index, message in enumerate(messages)]


def _template_message(index: int, message: Message) -> Mapping[str, Any]:
    where = f"messages.{index}"
    if message.tool_calls or message.function_call or message.role in ("tool", "function"):
        raise BadRequest(
            f"{where}: tool calls and their results are not supported yet",
            param="messages",
            code="unsupported_parameter",
        )
    role = "system" if message.role == "developer" else message.role
    if role not in ("system", "user", "assistant"):
        raise BadRequest(
            f"{where}.role is {_shown(role)}; it must be system, developer, user or assistant",
            param="messages",
        )
    turn: dict[str, Any] = {"role": role, "content": _text_of(where, message.content)}
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _text_of(where: str, content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        raise BadRequest(f"{where}.content is missing; send text", param="messages")
    texts = []
    for index, part in enumerate(content):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise BadRequest(
                f"{where}.content.{index} is {_shown(part.get('type'))}; this model reads text "
                'only: send {"type": "text", "text": "…"}',
                param="messages",
                code="unsupported_content",
            )
        texts.append(part["text"])
    return "\n".join(texts)
