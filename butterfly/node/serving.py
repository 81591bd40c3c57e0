"""Requests: where a client is connected (ingress), and where the pipeline begins (head).

The ingress owns the request: its prompt, what was emitted of the answer, its sampling
parameters. It submits to the head of the active epoch. When that epoch ends under it, it
submits prompt + emitted to the next one: sampling is counter-based, so the answer goes on as
it would have, but for what machines round otherwise. Tokens that a client was given are never
given again.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from butterfly.channel import Cancel, Emitted, Submit
from butterfly.node.addresses import AddressBook
from butterfly.node.engine import Engine
from butterfly.node.local import Local
from butterfly.node.model import ModelReader
from butterfly.node.replica import Replica
from butterfly.node.status import holds_layers
from butterfly_cluster.lifecycle import NodeState
from butterfly_core.errors import (
    EngineLost,
    NotServing,
    ProtocolViolation,
    Refused,
    RequestError,
    Unreachable,
)
from butterfly_core.generation import FinishReason, GenerationRequest, TokensEmitted
from butterfly_core.ids import NodeId
from butterfly_text.model import TextModel
from butterfly_wire.pool import PeerPool

log = logging.getLogger(__name__)

RESUME_SECONDS: Final = 60.0
SWITCH_SECONDS: Final = 60.0
SAME_EPOCH_SECONDS: Final = 2.0
_RESUMES_MAX: Final = 8
_LOOK_SECONDS: Final = 0.2
_REQUESTS_MAX: Final = 4096
_REQUEST = TypeAdapter(GenerationRequest)
_TOKENS = TypeAdapter(TokensEmitted)
_LOST = (Unreachable, EngineLost, Refused)


class HeadDesk:
    """The requests that this node's engine works on, as long as it is the head."""

    def __init__(self, engine: Engine, replica: Replica, me: NodeId) -> None:
        self._engine = engine
        self._replica = replica
        self._me = me
        self._open: dict[str, asyncio.Queue[TokensEmitted | EngineLost]] = {}

    @property
    def active_requests(self) -> int:
        return len(self._open)

    def deliver(self, message: Emitted) -> None:
        """Tokens came from the engine."""
        for tokens in message.tokens:
            queue = self._open.get(tokens.request_id)
            if queue is not None:
                queue.put_nowait(tokens)

    def lose_all(self, reason: str) -> None:
        """The engine or its pipeline is gone: every answer under way must go on elsewhere."""
        for queue in self._open.values():
            queue.put_nowait(EngineLost(reason))

    async def generate(
        self, request: GenerationRequest, epoch: int
    ) -> AsyncGenerator[TokensEmitted, None]:
        """The request's tokens as the last stage emits them. Raises EngineLost, RequestError."""
        self._check(request, epoch)
        queue: asyncio.Queue[TokensEmitted | EngineLost] = asyncio.Queue()
        self._open[request.request_id] = queue
        finished = False
        try:
            await self._engine.send(Submit(epoch, request))
            while not finished:
                piece = await queue.get()
                if isinstance(piece, EngineLost):
                    finished = True
                    raise piece
                finished = piece.finish is not None
                if piece.finish is FinishReason.ERROR:
                    raise _error_of(piece.error or "the engine gave no reason")
                yield piece
        finally:
            del self._open[request.request_id]
            if not finished:
                with suppress(EngineLost):  # it has nothing left to cancel
                    await self._engine.send(Cancel(request.request_id))

    def _check(self, request: GenerationRequest, epoch: int) -> None:
        state = self._replica.state
        if state.assignment is None or state.assignment.head != self._me or epoch != state.epoch:
            raise Refused(f"this node is not the head of epoch {epoch}")
        if request.request_id in self._open:
            raise RequestError(f"request {request.request_id} is under way already")
        if len(self._open) >= _REQUESTS_MAX:
            raise NotServing(f"{_REQUESTS_MAX} requests are under way", phase="serving")

    async def handle_generate(
        self, caller: NodeId, body: Mapping[str, Any]
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Another node's ingress submits here."""
        try:
            request = _REQUEST.validate_python(body.get("request"))
            epoch = int(body.get("epoch", 0))
        except (ValidationError, TypeError, ValueError, OverflowError) as error:
            raise ProtocolViolation(f"not a generation request: {error}") from error
        async with aclosing(self.generate(request, epoch)) as answer:
            async for tokens in answer:
                yield _TOKENS.dump_python(tokens, mode="json")


def _error_of(told: str) -> Exception:
    """The engine's words as the error they were there (``Name: message``)."""
    name, _, message = told.partition(": ")
    if name == "RequestError":
        return RequestError(message)
    if name == "NotServing":
        return NotServing(message, phase="serving")
    return EngineLost(told)


class Ingress:
    """Answers clients that are connected to this node, whoever is the head."""

    def __init__(
        self,
        me: NodeId,
        local: Local,
        *,
        replica: Replica,
        models: ModelReader,
        desk: HeadDesk,
        pool: PeerPool,
        addresses: AddressBook,
        admission_problem: Callable[[], str | None],
    ) -> None:
        self._me = me
        self._local = local
        self._replica = replica
        self._models = models
        self._desk = desk
        self._pool = pool
        self._addresses = addresses
        self._admission_problem = admission_problem
        self.active_requests = 0

    def model_name(self) -> str:
        return self._replica.state.model.name if self._replica.state.model else self._models.name

    def weights(self) -> str:
        """The identity of the model whose tokenizer ``text`` is."""
        model = self._replica.state.model
        return model.identity if model is not None else ""

    async def ready(self) -> None:
        """New requests wait while another model takes over, which is some seconds."""
        loop = asyncio.get_running_loop()
        until = loop.time() + SWITCH_SECONDS
        while self._is_switching() and not self._local.draining and loop.time() < until:
            await self._replica.changed.wait(_LOOK_SECONDS)

    def _is_switching(self) -> bool:
        state = self._replica.state
        offer = state.offer
        if offer is None or offer.is_ready:
            return offer is not None
        if offer.switched_epoch != state.epoch or not state.is_intact:
            return False
        if not state.is_active:
            return True
        try:
            self.text()
        except NotServing:
            return self._admission_problem() is None
        return False

    def text(self) -> TextModel:
        """Raises NotServing until validated weights serve, and the phase that this node is in."""
        self._check_serving()
        found = self._models.found
        if found is None or self._models.place != self._replica.state.source:
            raise NotServing("the tokenizer is not read yet", phase=self._local.phase.value)
        return found.text

    def _check_serving(self) -> None:
        phase = self._local.phase.value
        if self._local.draining:
            raise NotServing("this node is leaving; ask another one", phase="draining")
        problem = self._admission_problem()
        if problem is not None:
            raise NotServing(f"not serving ({phase}): {problem}", phase=phase)
        in_pipeline = self._local.node.state is NodeState.OPERATIONAL
        state = self._replica.state
        joining = self._local.node.state is NodeState.JOINING
        spare = joining and state.is_active and not holds_layers(state, self._me)
        if not in_pipeline and not spare:
            problem = state.plan_problem
            why = f": {problem.splitlines()[0]}" if problem else ""
            raise NotServing(f"the cluster is not operational yet ({phase}){why}", phase=phase)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokensEmitted, None]:
        """The whole answer, over as many epochs as it takes. Raises NotServing, RequestError."""
        self._check_serving()
        self.active_requests += 1
        try:
            async with aclosing(self._over_epochs(request)) as answer:
                async for tokens in answer:
                    yield tokens
        finally:
            self.active_requests -= 1

    async def _over_epochs(self, request: GenerationRequest) -> AsyncGenerator[TokensEmitted, None]:
        lost_epoch = 0
        for attempt in range(_RESUMES_MAX):
            epoch, head = await self._active_epoch(lost_epoch, request.model)
            part = replace(request, request_id=f"{request.request_id}-{epoch}-{attempt}")
            try:
                async with aclosing(self._from_head(head, epoch, part)) as answer:
                    async for piece in answer:
                        emitted = (*request.emitted, *piece.token_ids)
                        request = replace(request, emitted=emitted)
                        yield replace(piece, request_id=request.request_id)
                        if piece.finish is not None:
                            return
                raise Unreachable("the head ended the answer without its last token")
            except _LOST as error:
                log.warning(
                    "an answer lost its pipeline after %d tokens and will go on: %s",
                    len(request.emitted),
                    error,
                )
                lost_epoch = epoch
        raise NotServing(
            f"the pipeline broke {_RESUMES_MAX} times under this answer", phase="assignment"
        )

    async def _active_epoch(self, lost_epoch: int, model: str) -> tuple[int, NodeId]:
        """An epoch that serves, and its head. The one that was just lost counts again only
        after a while: as a rule its end is about to be committed."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        while True:
            state = self._replica.state
            if model and state.model is not None and state.model.identity != model:
                raise NotServing(
                    "another model took over before this answer ended; ask again",
                    phase=self._local.phase.value,
                )
            rested = state.epoch != lost_epoch or loop.time() - started > SAME_EPOCH_SECONDS
            if state.is_active and state.assignment is not None and rested:
                return state.epoch, state.assignment.head
            if loop.time() - started > RESUME_SECONDS:
                raise NotServing(
                    f"no pipeline came back within {RESUME_SECONDS:.0f} s",
                    phase=self._local.phase.value,
                    retry_after_seconds=10,
                )
            await self._replica.changed.wait(_LOOK_SECONDS)

    async def _from_head(
        self, head: NodeId, epoch: int, request: GenerationRequest
    ) -> AsyncGenerator[TokensEmitted, None]:
        if head == self._me:
            async with aclosing(self._desk.generate(request, epoch)) as answer:
                async for tokens in answer:
                    yield tokens
            return
        body = {"epoch": epoch, "request": _REQUEST.dump_python(request, mode="json")}
        address = self._addresses.of(head)
        async with aclosing(self._pool.stream(address, "generate", body, expect=head)) as pieces:
            async for piece in pieces:
                yield _TOKENS.validate_python(piece)
