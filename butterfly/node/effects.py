"""What a node does about each effect of its lifecycle.

An effect that can fail goes on trying, or records a fact that the cluster is then told; no
effect changes the node's state by itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from butterfly.channel import Drop, Load, Loaded, LoadFailed, WarmedUp, WarmUp
from butterfly.node.engine import Engine
from butterfly.node.links import LINK_SECONDS, Links
from butterfly.node.local import Local, Problem
from butterfly.node.model import ModelReader
from butterfly.node.orders import load_order
from butterfly.node.replica import Replica
from butterfly_cluster.commands import ReportBroken, ReportFailure
from butterfly_cluster.lifecycle import (
    ConnectPipeline,
    DropLayers,
    Effect,
    HoldLayers,
    JoinCluster,
    LeaveCluster,
    Phase,
    ReloadLayers,
    RestartEngine,
    Serve,
    StopAdmitting,
)
from butterfly_core.errors import ButterflyError, EngineLost
from butterfly_core.ids import NodeId, short

log = logging.getLogger(__name__)

WARM_UP_SECONDS: Final = 120.0
_RETRY_FIRST_SECONDS: Final = 1.0
_RETRY_MAX_SECONDS: Final = 15.0


class Effects:
    """The handlers, and the engine's answers that they wait for."""

    def __init__(
        self,
        me: NodeId,
        local: Local,
        *,
        replica: Replica,
        models: ModelReader,
        engine: Engine,
        links: Links,
        join: Callable[[], None],
        leave: Callable[[], Awaitable[None]],
    ) -> None:
        self._me = me
        self._local = local
        self._replica = replica
        self._models = models
        self._engine = engine
        self._links = links
        self._join = join
        self._leave = leave
        self._load_answer: asyncio.Future[Loaded | LoadFailed] | None = None
        self._warm_answer: asyncio.Future[WarmedUp] | None = None
        self._held_range = (0, 0)

    def handlers(self) -> Mapping[type[Effect], Callable[[Any], Awaitable[None]]]:
        return {
            JoinCluster: self._join_cluster,
            HoldLayers: self._hold_layers,
            ReloadLayers: self._reload_layers,
            ConnectPipeline: self._connect_pipeline,
            Serve: self._serve,
            StopAdmitting: self._stop_admitting,
            DropLayers: self._drop_layers,
            RestartEngine: self._restart_engine,
            LeaveCluster: self._leave_cluster,
        }

    def take_answer(self, message: Loaded | LoadFailed | WarmedUp) -> None:
        """The engine answered; an answer about an older epoch is dropped."""
        waiting: asyncio.Future[Any] | None = (
            self._warm_answer if isinstance(message, WarmedUp) else self._load_answer
        )
        if waiting is None or waiting.done() or message.epoch != self._local.node.epoch:
            return
        waiting.set_result(message)

    async def _join_cluster(self, _: JoinCluster) -> None:
        self._local.enter(Phase.DISCOVERY)
        self._join()

    async def _hold_layers(self, effect: HoldLayers) -> None:
        self._held_range = (effect.start, effect.stop)
        self._local.set_facts(rejections_seen=0, failure=None)
        await self._load_until_held(effect.epoch, forget=False)

    async def _reload_layers(self, effect: ReloadLayers) -> None:
        log.error("the cluster rejects this node's weights: %s", effect.reason)
        self._local.set_facts(
            rejections_seen=effect.count, loaded_epoch=0, loaded_digests=None, failure=None
        )
        if effect.count > 1:
            await asyncio.sleep(min(2.0**effect.count, _RETRY_MAX_SECONDS))
        await self._models.refresh()
        await self._load_until_held(effect.epoch, forget=True)

    async def _load_until_held(self, epoch: int, *, forget: bool) -> None:
        """Ask the engine to load, again after each failure, each time from a fresh reading."""
        pause = _RETRY_FIRST_SECONDS
        while True:
            self._local.take_progress(None)
            self._local.enter(Phase.LOADING_WEIGHTS)
            try:
                answer = await self._load_once(epoch, forget=forget)
            except EngineLost as error:
                log.warning("the engine went while loading: %s", error)
                return  # its death is an event, and the next epoch loads again
            if isinstance(answer, Loaded):
                self._note_loaded(answer)
                return
            forget = False  # what the next try finds proven in the cache, it may keep
            self._note_failure(answer)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _RETRY_MAX_SECONDS)
            await self._models.refresh()

    async def _load_once(self, epoch: int, *, forget: bool) -> Loaded | LoadFailed:
        order = await self._order(epoch, forget=forget)
        if isinstance(order, LoadFailed):
            return order
        self._load_answer = asyncio.get_running_loop().create_future()
        await self._engine.send(order)
        return await self._load_answer

    async def _order(self, epoch: int, *, forget: bool) -> Load | LoadFailed:
        await self._models.read_until_known(lambda: self._replica.state)
        agreed = self._replica.state.model
        if agreed is not None and self._models.turn_to(agreed.revision):
            await self._models.refresh()
        state, found = self._replica.state, self._models.found
        agreed = state.model
        assert found is not None
        if agreed is None or state.assignment is None:
            return LoadFailed(epoch, "no model is agreed on", "NotServing")
        seen = found.described.spec.identity
        if seen != agreed.identity:
            message = (
                f"the model at this node's source is {seen[:16]}, not the "
                f"{agreed.identity[:16]} that the cluster serves: restore its files if they were "
                "changed, make [model] source_path equal on all nodes, or give up what was pinned "
                "(butterfly-admin manifest repin)"
            )
            return LoadFailed(epoch, message, "ModelError")
        return load_order(
            epoch,
            agreed,
            self._models.engine_source(),
            found.checkpoint,
            layers=self._held_range,
            kv_tokens=state.assignment.kv_tokens,
            stages=len(state.assignment.stages),
            repinned_epoch=state.repinned_epoch,
            node=self._me,
            forget=forget,
        )

    def _note_loaded(self, answer: Loaded) -> None:
        local = self._local
        note_fetched(local, self._me, answer)
        local.solved("load_failed")
        local.enter(Phase.VALIDATION)
        local.set_facts(loaded_epoch=answer.epoch, loaded_digests=answer.part_digests, failure=None)

    def _note_failure(self, answer: LoadFailed) -> None:
        self._local.bytes_from_source_total = self._local.bytes_from_source
        self._local.bytes_from_cache_total = self._local.bytes_from_cache
        self._local.bytes_from_peers_total = self._local.bytes_from_peers
        self._local.verification_failures_total += answer.unproven
        message = f"node {short(self._me)}: {answer.message}"
        log.error("cannot load: %s", message)
        self._local.report(Problem("load_failed", message, answer.file, answer.tensor))
        failure = ReportFailure(
            answer.epoch, self._me, message, answer.error, answer.file, answer.tensor
        )
        self._local.set_facts(failure=failure)

    async def _connect_pipeline(self, effect: ConnectPipeline) -> None:
        self._local.enter(Phase.READY)
        assignment = self._replica.state.assignment
        if assignment is None or assignment.epoch != effect.epoch:
            return
        try:
            await self._links.connect(assignment)
            if assignment.head == self._me:
                await self._warm_up(effect.epoch)
        except ButterflyError as error:
            reason = f"node {short(self._me)} cannot complete the pipeline: {error}"
            log.error(reason)
            self._local.set_facts(broken=ReportBroken(effect.epoch, self._me, reason))

    async def _warm_up(self, epoch: int) -> None:
        self._warm_answer = asyncio.get_running_loop().create_future()
        await self._engine.send(WarmUp(epoch, WARM_UP_SECONDS))
        try:
            async with asyncio.timeout(WARM_UP_SECONDS + LINK_SECONDS):
                answer = await self._warm_answer
        except TimeoutError:
            raise EngineLost("this node's engine did not answer the warm-up order") from None
        if answer.problem is not None:
            raise EngineLost(f"the warm-up request failed: {answer.problem}")
        self._local.set_facts(warm_epoch=epoch)

    async def _serve(self, effect: Serve) -> None:
        self._local.enter(Phase.SERVING)
        log.info("epoch %d: requests are admitted", effect.epoch)

    async def _stop_admitting(self, effect: StopAdmitting) -> None:
        self._local.enter(Phase.READY)
        log.warning("requests are not admitted: %s", effect.reason)

    async def _drop_layers(self, effect: DropLayers) -> None:
        log.info("dropping the layers: %s", effect.reason)
        self._local.enter(Phase.ASSIGNMENT)
        self._local.set_facts(loaded_epoch=0, loaded_digests=None, failure=None)
        self._local.solved("load_failed")
        with suppress(EngineLost):  # then there is nothing to drop
            await self._engine.send(Drop())

    async def _restart_engine(self, effect: RestartEngine) -> None:
        self._local.enter(Phase.ASSIGNMENT)
        self._engine.restart()

    async def _leave_cluster(self, _: LeaveCluster) -> None:
        self._local.enter(Phase.DRAINING)
        await self._leave()


def note_fetched(local: Local, me: NodeId, answer: Loaded) -> None:
    """Count what a load brought, and tell what was mended on the way."""
    local.bytes_from_source_total += answer.bytes_from_source
    local.bytes_from_cache_total += answer.bytes_from_cache
    local.bytes_from_peers_total += answer.bytes_from_peers
    local.verification_failures_total += len(answer.healed)
    healed = tuple(f"wrong once, fetched again: {leaf}" for leaf in answer.healed)
    for event in (*healed, *answer.events):
        log.warning("while loading: %s", event)
        local.events.append(f"node {short(me)}: {event}")
