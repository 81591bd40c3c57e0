"""The OpenAI API: chat completions, completions and models."""

import asyncio
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from aiohttp import web

from butterfly.api.answer import Answer
from butterfly.api.ask import compile_ask
from butterfly.api.body import read_limited
from butterfly.api.errors import ModelNotFound
from butterfly.api.limits import ApiLimits
from butterfly.api.open_answers import OpenAnswers
from butterfly.api.replies import (
    ChatDialect,
    Dialect,
    ModelCard,
    ModelList,
    Reply,
    TextDialect,
    usage_of,
)
from butterfly.api.schema import (
    ChatBody,
    CompletionBody,
    GenerationBody,
    read_body,
    template_messages,
)
from butterfly.api.streaming import collect_answer, stream_answer
from butterfly.api.views import Observer, Serving, TextModelLike

Encode = Callable[[TextModelLike], Awaitable[Sequence[Sequence[int]]]]


@dataclass(frozen=True, slots=True)
class OpenAiRoutes:
    """The handlers, with what they need; time and chance come in."""

    serving: Serving
    limits: ApiLimits
    observer: Observer
    answers: OpenAnswers
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    new_id: Callable[[], str] = field(default=lambda: uuid.uuid4().hex)
    new_seed: Callable[[], int] = field(default=lambda: secrets.randbits(63))
    started_at: int = field(default_factory=lambda: int(time.time()))

    def routes(self) -> list[web.RouteDef]:
        """What to add to the application."""
        return [
            web.post("/v1/chat/completions", self.chat),
            web.post("/v1/completions", self.completions),
            web.get("/v1/models", self.models),
            web.get("/v1/models/{model:.+}", self.model),
        ]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/chat/completions``."""
        with self.answers.admitted():
            body = read_body(await read_limited(request, self.limits), ChatBody)
            messages = template_messages(body.messages, messages_max=self.limits.messages_max)
            template_kwargs = body.template_kwargs()

            async def encode(text: TextModelLike) -> list[list[int]]:
                return [
                    await asyncio.to_thread(
                        text.encode_chat, messages, template_kwargs=template_kwargs
                    )
                ]

            await self.serving.ready()
            answer_id = f"chatcmpl-{self.new_id()}"
            dialect = ChatDialect(answer_id, *self._heading(), with_usage=body.include_usage)
            return await self._answer(request, body, encode, dialect, answer_id)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """``POST /v1/completions``."""
        with self.answers.admitted():
            body = read_body(await read_limited(request, self.limits), CompletionBody)
            prompts = body.prompts()
            special = body.add_special_tokens is not False

            async def encode(text: TextModelLike) -> list[list[int]]:
                return [
                    await asyncio.to_thread(text.encode, each, add_special_tokens=special)
                    if isinstance(each, str)
                    else each
                    for each in prompts
                ]

            await self.serving.ready()
            answer_id = f"cmpl-{self.new_id()}"
            dialect = TextDialect(answer_id, *self._heading(), with_usage=body.include_usage)
            return await self._answer(request, body, encode, dialect, answer_id)

    async def models(self, request: web.Request) -> web.Response:
        """``GET /v1/models``."""
        return _json(ModelList(object="list", data=[self._card()]))

    async def model(self, request: web.Request) -> web.Response:
        """``GET /v1/models/{model}``."""
        self._check_model(request.match_info["model"])
        return _json(self._card())

    async def _answer(
        self,
        request: web.Request,
        body: GenerationBody,
        encode: Encode,
        dialect: Dialect,
        answer_id: str,
    ) -> web.StreamResponse:
        self._check_model(body.model)
        text, model = self.serving.text(), self.serving.weights()
        ask = compile_ask(
            body,
            await encode(text),
            text,
            self.limits,
            request_id=answer_id,
            random_seed=self.new_seed(),
            model=model,
        )
        answer = Answer(ask, self.serving, text, self.limits, self.observer, self.clock)
        async with answer:
            with self.answers.tracked(answer):
                if body.stream:
                    return await stream_answer(
                        request, answer, dialect, self.limits, with_usage=body.include_usage
                    )
                pieces = await collect_answer(
                    answer, len(ask.sequences), wait_seconds=self.limits.keep_alive_seconds
                )
        usage = usage_of(answer.prompt_tokens, answer.generated_tokens)
        return web.Response(body=dialect.whole(pieces, usage), content_type="application/json")

    def _heading(self) -> tuple[str, int]:
        return self.serving.model_name(), int(self.wall_clock())

    def _card(self) -> ModelCard:
        return ModelCard(
            id=self.serving.model_name(),
            object="model",
            created=self.started_at,
            owned_by="butterfly",
        )

    def _check_model(self, asked: str | None) -> None:
        """A request without a model gets the one there is."""
        served = self.serving.model_name()
        if asked is not None and asked != served:
            raise ModelNotFound(f"The model {asked!r} is not served here; this is {served!r}")


def _json(reply: Reply) -> web.Response:
    return web.Response(body=reply.json_bytes(), content_type="application/json")
