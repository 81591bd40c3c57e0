"""What this node makes of its engine's messages, and of its death."""

from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from butterfly.channel import (
    Emitted,
    FromEngine,
    Hello,
    LinkLost,
    Loaded,
    LoadFailed,
    Progressed,
    Statistics,
    WarmedUp,
)
from butterfly.node.effects import Effects
from butterfly.node.local import Local
from butterfly.node.serving import HeadDesk
from butterfly_cluster.commands import ReportBroken
from butterfly_cluster.lifecycle import EngineDied, Event, NodeState, Phase
from butterfly_core.ids import NodeId, short


class EngineEars:
    """Turns messages into facts and events."""

    def __init__(
        self,
        me: NodeId,
        local: Local,
        *,
        effects: Effects,
        desk: HeadDesk,
        post: Callable[[Event], None],
        capacity_share: float,
    ) -> None:
        self._me = me
        self._local = local
        self._effects = effects
        self._desk = desk
        self._post = post
        self._capacity_share = capacity_share

    def hear(self, message: FromEngine) -> None:
        """One message, in the order in which the engine sent them."""
        match message:
            case Hello(engine=engine, capacity=capacity):
                offered = int(capacity.memory_free_bytes * self._capacity_share)
                offer = replace(capacity, memory_free_bytes=offered)
                self._local.set_facts(engine=engine, capacity=offer)
            case Progressed():
                self._note_progress(message)
            case Loaded() | LoadFailed() | WarmedUp():
                self._effects.take_answer(message)
            case Emitted():
                self._desk.deliver(message)
            case Statistics(values=values):
                self._local.engine_statistics = values
            case LinkLost(epoch=epoch, reason=reason):
                told = f"node {short(self._me)} lost a neighbour in the pipeline: {reason}"
                self._desk.lose_all(told)
                self._local.set_facts(broken=ReportBroken(epoch, self._me, told))
            case _:
                assert_never(message)

    def _note_progress(self, message: Progressed) -> None:
        local = self._local
        if message.epoch != local.node.epoch or local.node.state is not NodeState.LOADING:
            return
        local.progress = message
        local.enter(Phase(message.phase))

    def mourn(self, reason: str) -> None:
        """The engine process ended: what it held is gone."""
        self._desk.lose_all(f"the engine process ended: {reason}")
        self._local.set_facts(
            engine=None, capacity=None, loaded_epoch=0, loaded_digests=None, failure=None
        )
        self._post(EngineDied(reason))
