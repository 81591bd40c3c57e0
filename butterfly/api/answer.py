"""The ingress side of one answer: token ids come in, pieces of text go out.

One request may have several choices (prompts times n); each is one sequence at the engine. They run
side by side and meet in one bounded queue, so a slow client holds back its own answer only.
Leaving the ``async with`` cancels every sequence that still runs.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from butterfly.api.ask import Ask
from butterfly.api.errors import InternalError
from butterfly.api.limits import ApiLimits
from butterfly.api.views import DetokenizerLike, Observer, Serving, TextModelLike
from butterfly_core.errors import ButterflyError, EngineLost
from butterfly_core.generation import FinishReason, GenerationRequest, TokensEmitted
from butterfly_text.stop_strings import StopStrings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of one choice; ``finish`` (``stop`` or ``length``) is set with its last one."""

    index: int
    text: str
    finish: str | None = None


class Assembly:
    """The text of one sequence, from its token ids. Pure.

    A stop token and a stop string end the text before themselves. Tokens are counted as
    generated up to the one that completed the stop string.
    """

    def __init__(
        self, request: GenerationRequest, detokenizer: DetokenizerLike, stops: tuple[str, ...]
    ) -> None:
        self._request = request
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self.tokens = 0

    def push(self, index: int, emitted: TokensEmitted) -> Piece:
        """Take the next tokens. Raises EngineLost when the sequence broke."""
        if emitted.finish in (FinishReason.ERROR, FinishReason.CANCELLED):
            why = emitted.error or f"the engine ended it ({emitted.finish.value})"
            raise EngineLost(f"The answer broke off after {self.tokens} tokens: {why}")
        text = ""
        shown = emitted.token_ids[: -1 if self._ends_with_stop_token(emitted) else None]
        for token_id in shown:
            self.tokens += 1
            text += self._stops.push(self._detokenizer.push((token_id,)))
            if self._stops.stopped:
                return Piece(index, text, FinishReason.STOP.value)
        self.tokens += len(emitted.token_ids) - len(shown)
        return self._ended(index, text, emitted.finish) if emitted.finish else Piece(index, text)

    def _ended(self, index: int, text: str, finish: FinishReason) -> Piece:
        text += self._stops.push(self._detokenizer.flush())
        if self._stops.stopped:
            return Piece(index, text, FinishReason.STOP.value)
        return Piece(index, text + self._stops.flush(), finish.value)

    def _ends_with_stop_token(self, emitted: TokensEmitted) -> bool:
        ids = emitted.token_ids
        return (
            emitted.finish is FinishReason.STOP
            and bool(ids)
            and ids[-1] in self._request.stop_token_ids
        )


class Answer:
    """All choices of one request while they are generated."""

    def __init__(
        self,
        ask: Ask,
        serving: Serving,
        text: TextModelLike,
        limits: ApiLimits,
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._ask = ask
        self._serving = serving
        self._observer = observer
        self._clock = clock
        self._started = clock()
        self._deadline = self._started + limits.answer_timeout_seconds
        self._queue: asyncio.Queue[Piece | ButterflyError] = asyncio.Queue(
            limits.pieces_buffered_max
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._assemblies = [
            Assembly(
                sequence,
                text.detokenizer(skip_special_tokens=ask.skip_special_tokens),
                ask.stops,
            )
            for sequence in ask.sequences
        ]
        self._heard = False
        self._error: ButterflyError | None = None
        self._outcome = "cancelled"
        self.unfinished = len(ask.sequences)

    @property
    def generated_tokens(self) -> int:
        """Tokens of all choices so far."""
        return sum(assembly.tokens for assembly in self._assemblies)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return self._ask.prompt_tokens

    async def __aenter__(self) -> Self:
        self._observer.answer_started()
        self._tasks = [
            asyncio.create_task(self._run(index), name=f"answer {sequence.request_id}")
            for index, sequence in enumerate(self._ask.sequences)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if isinstance(error, ButterflyError):
            self._outcome = "error"
        self._observer.answer_ended(self._outcome, self.prompt_tokens, self.generated_tokens)

    def interrupt(self, error: ButterflyError) -> None:
        """Break the answer off: what waits is dropped, and ``next_pieces`` raises the error."""
        for task in self._tasks:
            task.cancel()
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(error)

    async def next_pieces(self, timeout_seconds: float) -> list[Piece]:
        """The next pieces of any choices: all that are there, at least one.

        Raises TimeoutError when none came in time (ask again), and what ended the answer:
        NotServing, RequestError, EngineLost. Pieces from before an error come before it.
        """
        items: list[Piece | ButterflyError] = []
        if self._error is None:
            items.append(await self._next_item(timeout_seconds))
            while not self._queue.empty():
                items.append(self._queue.get_nowait())
        pieces: list[Piece] = []
        for item in items:
            if isinstance(item, ButterflyError):
                self._error = item
                break
            pieces.append(item)
            self._note_finish(item)
        if not pieces and self._error is not None:
            self._outcome = "error"
            raise self._error
        return pieces

    async def _next_item(self, timeout_seconds: float) -> Piece | ButterflyError:
        left = self._deadline - self._clock()
        if left <= 0:
            waited = self._deadline - self._started
            return EngineLost(f"The answer took longer than {waited:.0f} s and was given up")
        async with asyncio.timeout(min(left, timeout_seconds)):
            return await self._queue.get()

    def _note_finish(self, piece: Piece) -> None:
        if piece.finish is not None:
            self.unfinished -= 1
            if self.unfinished == 0:
                self._outcome = piece.finish

    async def _run(self, index: int) -> None:
        try:
            await self._pump(index)
        except ButterflyError as error:
            await self._queue.put(error)
        except Exception:
            logger.exception("answer %s failed", self._ask.request_id)
            await self._queue.put(InternalError())

    async def _pump(self, index: int) -> None:
        assembly = self._assemblies[index]
        tokens = self._serving.generate(self._ask.sequences[index])
        try:
            async for emitted in tokens:
                self._note_first_token(emitted)
                piece = assembly.push(index, emitted)
                if piece.text or piece.finish:
                    await self._queue.put(piece)
                if piece.finish:
                    return
        finally:
            await _close(tokens)
        raise EngineLost(f"The answer ended after {assembly.tokens} tokens without a reason")

    def _note_first_token(self, emitted: TokensEmitted) -> None:
        if emitted.token_ids and not self._heard:
            self._heard = True
            self._observer.first_token(self._clock() - self._started)


@runtime_checkable
class _Closes(Protocol):
    async def aclose(self) -> None: ...


async def _close(iterator: AsyncIterator[TokensEmitted]) -> None:
    """Close the iterator now: left to the garbage collector, the engine would go on for nobody."""
    if isinstance(iterator, _Closes):
        await iterator.aclose()
