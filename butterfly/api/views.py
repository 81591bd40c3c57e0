"""What the HTTP face needs of the node behind it, and nothing more.

The node implements these Protocols; the tests implement them with a few lines each.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from butterfly_core.generation import GenerationRequest, TokensEmitted


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of readiness: what it is called, whether it holds, what was seen."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Cleared:
    """What went from a cache, or would go."""

    entries: int
    freed_bytes: int


class NodeView(Protocol):
    """The node as an operator sees it."""

    def status(self) -> Mapping[str, Any]:
        """The document of ``GET /status``; only values that JSON knows."""

    async def catch_up(self) -> None:
        """Until all that was committed anywhere before the call shows in ``status``.

        Raises NotServing in bounded time, when no majority is there.
        """

    def readiness(self) -> Sequence[Check]:
        """Every check in order; the first that fails is what blocks."""

    async def clear_cache(self, *, older_than_seconds: float, dry_run: bool) -> Cleared:
        """Delete what of this node's weight cache was not used for so long; 0 is all of it."""

    async def load_model(self, place: Mapping[str, str]) -> int:
        """Offer the model at a place to the cluster; the number of the offer, once committed.

        ``place`` has words of the ``[model]`` section. Raises RequestError, NotServing,
        Unreachable.
        """

    async def call_off_load(self) -> int:
        """Withdraw the model that is offered; the number of its offer.

        Raises RequestError when there is none, NotServing, Unreachable.
        """

    async def repin(self, root: str) -> None:
        """Give up the pinned root; returns once that is committed.

        Raises RequestError when another root or none is pinned, NotServing, Unreachable.
        """


class DetokenizerLike(Protocol):
    """Token ids to text, never half a character."""

    def push(self, ids: Sequence[int], /) -> str: ...

    def flush(self) -> str: ...


class TextModelLike(Protocol):
    """Between text and token ids for the model that is served."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]: ...

    @property
    def context_length(self) -> int | None: ...

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def generation_defaults(self) -> Mapping[str, Any]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]: ...

    def detokenizer(self, *, skip_special_tokens: bool = True) -> DetokenizerLike: ...


class Serving(Protocol):
    """The cluster as one model that answers."""

    async def ready(self) -> None:
        """While another model takes over: until it has, in bounded time."""

    def text(self) -> TextModelLike:
        """The tokenizer of the served model. Raises NotServing."""

    def weights(self) -> str:
        """What tells the model of ``text`` from any other."""

    def model_name(self) -> str:
        """The name that clients ask for."""

    def generate(self, request: GenerationRequest) -> AsyncIterator[TokensEmitted]:
        """Tokens as they come; closing the iterator cancels. Raises NotServing, RequestError."""


class Observer(Protocol):
    """Who counts requests; the default counts nothing."""

    def request_ended(self, route: str, method: str, status: int, seconds: float) -> None: ...

    def answer_started(self) -> None: ...

    def first_token(self, seconds: float) -> None: ...

    def answer_ended(self, finish: str, prompt_tokens: int, generated_tokens: int) -> None: ...


class NoObserver:
    """Counts nothing."""

    def request_ended(self, route: str, method: str, status: int, seconds: float) -> None:
        pass

    def answer_started(self) -> None:
        pass

    def first_token(self, seconds: float) -> None:
        pass

    def answer_ended(self, finish: str, prompt_tokens: int, generated_tokens: int) -> None:
        pass
