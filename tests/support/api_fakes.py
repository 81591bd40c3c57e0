"""A node and a model made of a few lines, for tests of the HTTP face.

The model's tokens are characters: token id = code point, 0 ends an answer. It answers every
prompt with its script, one token at a time.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from butterfly.api.views import Check, Cleared
from butterfly_core.errors import ButterflyError, NotServing, RequestError
from butterfly_core.generation import FinishReason, GenerationRequest, TokensEmitted

EOS = 0


class CharacterDetokenizer:
    """Code points to text; id 0 is a special token without text."""

    def push(self, ids: Sequence[int], /) -> str:
        return "".join(chr(token_id) for token_id in ids if token_id != EOS)

    def flush(self) -> str:
        return ""


@dataclass
class CharacterText:
    """A tokenizer whose tokens are characters."""

    context_length: int | None = 2048
    eos_token_ids: tuple[int, ...] = (EOS,)
    vocabulary_size: int = 0x110000
    generation_defaults: Mapping[str, Any] = field(default_factory=dict)
    chats: list[tuple[Sequence[Mapping[str, Any]], Mapping[str, Any] | None]] = field(
        default_factory=list
    )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) for character in text]

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        self.chats.append((messages, template_kwargs))
        return [ord(c) for message in messages for c in f"{message['role']}:{message['content']};"]

    def detokenizer(self, *, skip_special_tokens: bool = True) -> CharacterDetokenizer:
        return CharacterDetokenizer()


@dataclass
class FakeServing:
    """Answers with ``script``; can wait, fail before or in the middle, or never end."""

    script: str = "Hello there."
    name: str = "toy"
    text_model: CharacterText = field(default_factory=CharacterText)
    refuse: ButterflyError | None = None
    fail_after: int | None = None
    failure: ButterflyError | None = None
    ends: bool = True
    gate: asyncio.Event | None = None
    """When set, tokens wait for it, from this one on:"""
    gated_from: int = 1
    requests: list[GenerationRequest] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    running: int = 0
    was_refused: asyncio.Event = field(default_factory=asyncio.Event)
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _left: asyncio.Event = field(default_factory=asyncio.Event)

    def text(self) -> CharacterText:
        if self.refuse is not None:
            self.was_refused.set()
            raise self.refuse
        return self.text_model

    async def ready(self) -> None:
        """No other model takes over."""

    def weights(self) -> str:
        return "weights"

    def model_name(self) -> str:
        return self.name

    async def until_running(self, count: int) -> None:
        """Wait until so many sequences run."""
        while self.running < count:
            self._arrived.clear()
            await asyncio.wait_for(self._arrived.wait(), 10)

    async def until_idle(self) -> None:
        """Wait until none runs."""
        while self.running:
            self._left.clear()
            await asyncio.wait_for(self._left.wait(), 10)

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokensEmitted]:
        self.requests.append(request)
        self.running += 1
        self._arrived.set()
        try:
            async for emitted in self._tokens(request):
                yield emitted
        finally:
            self.running -= 1
            self.closed.append(request.request_id)
            self._left.set()

    async def _tokens(self, request: GenerationRequest) -> AsyncIterator[TokensEmitted]:
        for index, character in enumerate(self.script):
            await asyncio.sleep(0)
            if self.gate is not None and index >= self.gated_from:
                await self.gate.wait()
            if index == self.fail_after and self.failure is not None:
                raise self.failure
            last = index + 1 == request.tokens_max
            finish = FinishReason.LENGTH if last else None
            yield TokensEmitted(request.request_id, (ord(character),), finish)
            if last:
                return
        if self.ends:
            yield TokensEmitted(request.request_id, (EOS,), FinishReason.STOP)


@dataclass
class FakeNode:
    """A node that is what it is told to be."""

    checks: list[Check] = field(default_factory=lambda: [Check("serving", True, "OPERATIONAL")])
    cache_bytes: int = 12_345
    behind: str = ""
    pinned_root: str = ""
    offers: list[Mapping[str, str]] = field(default_factory=list)
    cleared: list[tuple[float, bool]] = field(default_factory=list)

    def status(self) -> Mapping[str, Any]:
        return {"state": "OPERATIONAL", "phase": "serving", "progress_percent": 100.0}

    async def catch_up(self) -> None:
        if self.behind:
            raise NotServing(self.behind, phase="serving")

    def readiness(self) -> Sequence[Check]:
        return self.checks

    async def clear_cache(self, *, older_than_seconds: float, dry_run: bool) -> Cleared:
        self.cleared.append((older_than_seconds, dry_run))
        freed = Cleared(2, self.cache_bytes)
        if not dry_run:
            self.cache_bytes = 0
        return freed

    async def load_model(self, place: Mapping[str, str]) -> int:
        self.offers.append(place)
        return len(self.offers)

    async def call_off_load(self) -> int:
        if not self.offers:
            raise RequestError("no model is offered now")
        self.offers.pop()
        return 1

    async def repin(self, root: str) -> None:
        if root != self.pinned_root:
            raise RequestError(f"this cluster has pinned nothing, not {root}")
        self.pinned_root = ""
