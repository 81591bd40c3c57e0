"""Answers as OpenAI's clients read them: whole, and in chunks of a stream.

Only what is set is sent: a field that OpenAI sends as null is set to None, one that it leaves
out is left out.
"""

from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from butterfly.api.answer import Piece


class Reply(BaseModel):
    """Anything that is answered as JSON."""

    model_config = ConfigDict(frozen=True)

    def json_bytes(self) -> bytes:
        """As it goes over the wire."""
        return self.model_dump_json(exclude_unset=True).encode()


class Usage(Reply):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(Reply):
    """What the model said."""

    role: str
    content: str
    refusal: str | None


class ChatChoice(Reply):
    """One whole answer of a chat."""

    index: int
    message: ChatMessage
    logprobs: None
    finish_reason: str


class ChatDelta(Reply):
    """What a chunk adds to the message."""

    role: str | None = None
    content: str | None = None


class ChatChunkChoice(Reply):
    """One chunk of one answer of a chat."""

    index: int
    delta: ChatDelta
    logprobs: None
    finish_reason: str | None


class TextChoice(Reply):
    """One completion, or one chunk of it."""

    index: int
    text: str
    logprobs: None
    finish_reason: str | None


class Document(Reply):
    """An answer or a chunk with its heading."""

    id: str
    object: str
    created: int
    model: str
    choices: list[ChatChoice] | list[ChatChunkChoice] | list[TextChoice]
    usage: Usage | None = None


class ModelCard(Reply):
    """One model that is served."""

    id: str
    object: str
    created: int
    owned_by: str


class ModelList(Reply):
    """``GET /v1/models``."""

    object: str
    data: list[ModelCard]


def usage_of(prompt_tokens: int, completion_tokens: int) -> Usage:
    """Add the two."""
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


class Dialect(Protocol):
    """How one of the two APIs words its answers; JSON as bytes."""

    def opening(self, index: int) -> list[bytes]:
        """What opens a choice of a stream."""

    def chunks(self, piece: Piece) -> list[bytes]:
        """One piece of a stream."""

    def usage(self, usage: Usage) -> bytes:
        """The chunk that ends a stream whose client asked for the counts."""

    def whole(self, answers: list[Piece], usage: Usage) -> bytes:
        """The answer in one document; each choice as one piece."""


class _Heading:
    """Id, time and model stand in every document and chunk of an answer."""

    def __init__(self, answer_id: str, model: str, created: int, *, with_usage: bool) -> None:
        self._heading: dict[str, Any] = {"id": answer_id, "created": created, "model": model}
        self._chunk_extra: dict[str, Any] = {"usage": None} if with_usage else {}

    def _document(self, kind: str, choices: list[Any], usage: Usage) -> bytes:
        return Document(**self._heading, object=kind, choices=choices, usage=usage).json_bytes()

    def _chunk(self, kind: str, choices: list[Any]) -> bytes:
        return Document(
            **self._heading, object=kind, choices=choices, **self._chunk_extra
        ).json_bytes()


class ChatDialect(_Heading):
    """``chat.completion`` and its chunks."""

    def opening(self, index: int) -> list[bytes]:
        """Says who speaks."""
        return [self._delta(index, ChatDelta(role="assistant", content=""), None)]

    def chunks(self, piece: Piece) -> list[bytes]:
        """The text, and the reason of the end in a chunk of its own, as OpenAI sends them."""
        chunks = []
        if piece.text:
            chunks.append(self._delta(piece.index, ChatDelta(content=piece.text), None))
        if piece.finish:
            chunks.append(self._delta(piece.index, ChatDelta(), piece.finish))
        return chunks

    def usage(self, usage: Usage) -> bytes:
        return self._document("chat.completion.chunk", [], usage)

    def whole(self, answers: list[Piece], usage: Usage) -> bytes:
        choices = [
            ChatChoice(
                index=each.index,
                message=ChatMessage(role="assistant", content=each.text, refusal=None),
                logprobs=None,
                finish_reason=each.finish or "stop",
            )
            for each in answers
        ]
        return self._document("chat.completion", choices, usage)

    def _delta(self, index: int, delta: ChatDelta, finish: str | None) -> bytes:
        choice = ChatChunkChoice(index=index, delta=delta, logprobs=None, finish_reason=finish)
        return self._chunk("chat.completion.chunk", [choice])


class TextDialect(_Heading):
    """``text_completion``, whole and in chunks."""

    def opening(self, index: int) -> list[bytes]:
        """A completion opens with its first text."""
        return []

    def chunks(self, piece: Piece) -> list[bytes]:
        return [self._chunk("text_completion", [_text_choice(piece)])]

    def usage(self, usage: Usage) -> bytes:
        return self._document("text_completion", [], usage)

    def whole(self, answers: list[Piece], usage: Usage) -> bytes:
        return self._document("text_completion", [_text_choice(each) for each in answers], usage)


def _text_choice(piece: Piece) -> TextChoice:
    return TextChoice(index=piece.index, text=piece.text, logprobs=None, finish_reason=piece.finish)
