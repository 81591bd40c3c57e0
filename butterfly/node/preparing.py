"""Reads and loads a model that is offered, beside the one that serves.

What becomes of it is a fact that the cluster is told (``node_duty``). Any failure here ends the
offer and nothing else; what was prepared is forgotten when the offer is withdrawn.
"""

import asyncio
import logging
from typing import Final

from butterfly.channel import GiveUp, Loaded, LoadFailed, Prepare, Preparing, Progressed
from butterfly.node.effects import note_fetched
from butterfly.node.engine import Engine
from butterfly.node.local import Local
from butterfly.node.model import ModelReader
from butterfly.node.orders import load_order
from butterfly.node.reading import Reading
from butterfly.node.replica import Replica
from butterfly_cluster.offer_commands import OfferReport, ReportPrepared, ReportUnprepared
from butterfly_cluster.state import AssignedStage, ModelOffer
from butterfly_core.errors import ButterflyError, EngineLost
from butterfly_core.ids import NodeId, short
from butterfly_core.model import ModelSpec

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 5.0


class Preparer:
    """``run`` for ever; ``take`` what the engine says of a preparation."""

    def __init__(
        self, me: NodeId, local: Local, *, replica: Replica, models: ModelReader, engine: Engine
    ) -> None:
        self._me = me
        self._local = local
        self._replica = replica
        self._models = models
        self._engine = engine
        self._answer: asyncio.Future[Loaded | LoadFailed] | None = None
        self._number = 0

    def take(self, message: Preparing) -> None:
        """The engine tells how far it is, or how it ended; of an older offer it is dropped."""
        if message.number != self._number:
            return
        if isinstance(message.told, Progressed):
            self._local.offer_progress = message.told
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(message.told)

    async def run(self) -> None:
        """One offer after the other."""
        while True:
            offer = self._replica.state.open_offer
            if offer is None:
                await self._local.changed.wait(_LOOK_SECONDS)
            else:
                await self._attend(offer.number)

    async def _attend(self, number: int) -> None:
        """Until the offer has ended."""
        self._number, self._answer = number, None
        self._local.offer_progress = None
        self._local.set_facts(offer_report=None)
        async with asyncio.TaskGroup() as tasks:
            working = tasks.create_task(self._work(number))
            while self._open(number) is not None:
                await self._local.changed.wait(_LOOK_SECONDS)
            working.cancel()
        self._number = 0
        self._local.set_facts(offer_report=None)
        offer = self._replica.state.offer
        switched = offer is not None and offer.number == number and offer.switched_epoch
        if self._answer is not None and not switched:
            await self._give_up()

    def _open(self, number: int) -> ModelOffer | None:
        offer = self._replica.state.open_offer
        return offer if offer is not None and offer.number == number else None

    async def _work(self, number: int) -> None:
        try:
            report = await self._prepare(number)
        except EngineLost as error:
            log.warning("the engine went while it prepared a model: %s", error)
            return  # its death is an event, and ends the offer
        except (ButterflyError, OSError) as error:
            report = self._unprepared(number, f"cannot read the offered model: {error}")
        if report is not None:
            log.info("offer %d: %s", number, report.kind)
            self._local.set_facts(offer_report=report)

    async def _prepare(self, number: int) -> OfferReport | None:
        """None when there is nothing to prepare on this node. Raises ButterflyError, OSError."""
        offer = self._open(number)
        if offer is None:
            return None
        await self._models.read_offered(offer.place)
        while offer.spec is None:
            await self._local.changed.wait(_LOOK_SECONDS)
            offer = self._open(number)
            if offer is None:
                return None
        found = await self._models.read_offered(offer.place)
        stage = offer.stage_of(self._me)
        if stage is None or stage.engine != self._local.facts.engine:
            return None
        seen, wanted = found.described.spec.identity, offer.spec.identity
        if seen != wanted:
            told = f"{offer.place} is {seen[:16]} here, and {wanted[:16]} where it was planned"
            return self._unprepared(number, f"{told}; let all nodes see the same files")
        return await self._load(offer, offer.spec, stage, found)

    async def _load(
        self, offer: ModelOffer, spec: ModelSpec, stage: AssignedStage, found: Reading
    ) -> OfferReport:
        order = load_order(
            0,
            spec,
            self._models.source_of(offer.place, found),
            found.checkpoint,
            layers=(stage.layers.start, stage.layers.stop),
            kv_tokens=offer.kv_tokens,
            stages=len(offer.stages),
            repinned_epoch=self._replica.state.repinned_epoch,
            node=self._me,
        )
        self._answer = asyncio.get_running_loop().create_future()
        await self._engine.send(Prepare(offer.number, order))
        answer = await self._answer
        if isinstance(answer, LoadFailed):
            self._local.verification_failures_total += answer.unproven
            return self._unprepared(offer.number, answer.message)
        note_fetched(self._local, self._me, answer)
        return ReportPrepared(offer.number, self._me, answer.part_digests)

    def _unprepared(self, number: int, message: str) -> ReportUnprepared:
        told = f"node {short(self._me)}: {message}"
        log.error("the offered model comes to nothing: %s", told)
        return ReportUnprepared(number, self._me, told)

    async def _give_up(self) -> None:
        try:
            await self._engine.send(GiveUp())
        except EngineLost as error:
            log.info("nothing is left to give up: %s", error)
