"""What this node makes of its engine's messages, and of its death."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import assert_never

from butterfly.channel import (
    Emitted,
    FromEngine,
    Hello,
    LinkLost,
    Loaded,
    LoadFailed,
    Preparing,
    Progressed,
    Statistics,
    WarmedUp,
)
from butterfly.node.effects import Effects
from butterfly.node.engine import Death
from butterfly.node.local import Local, Problem
from butterfly.node.serving import HeadDesk
from butterfly.peer_messages import WantPeers
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
        want_peers: Callable[[int], None] = lambda _: None,
        on_preparing: Callable[[Preparing], None] = lambda _: None,
    ) -> None:
        """``want_peers(turn)``: its load could use weights that other nodes hold.
        ``on_preparing``: what becomes of a model that is offered."""
        self._me = me
        self._local = local
        self._effects = effects
        self._desk = desk
        self._post = post
        self._capacity_share = capacity_share
        self._want_peers = want_peers
        self._on_preparing = on_preparing

    def hear(self, message: FromEngine) -> None:
        """One message, in the order in which the engine sent them."""
        match message:
            case Hello(engine=engine, capacity=capacity):
                offered = int(capacity.memory_free_bytes * self._capacity_share)
                offer = replace(capacity, memory_free_bytes=offered)
                self._local.solved("engine")
                self._local.set_facts(engine=engine, capacity=offer)
            case Progressed():
                self._note_progress(message)
            case Loaded() | LoadFailed() | WarmedUp():
                self._effects.take_answer(message)
            case Preparing():
                self._on_preparing(message)
            case WantPeers(turn=turn):
                self._want_peers(turn)
            case Emitted():
                self._desk.deliver(message)
            case Statistics(values=values):
                self._note_statistics(values)
            case LinkLost(epoch=epoch, reason=reason):
                told = f"node {short(self._me)} lost a neighbour in the pipeline: {reason}"
                self._desk.lose_all(told)
                self._local.set_facts(broken=ReportBroken(epoch, self._me, told))
            case _:
                assert_never(message)

    def _note_statistics(self, values: Mapping[str, int]) -> None:
        local = self._local
        rotten = values.get("cache_rotten", 0) - local.engine_statistics.get("cache_rotten", 0)
        if rotten > 0:
            told = f"{rotten} cached tensors were damaged on the disk; they were dropped"
            local.events.append(f"node {short(self._me)}: {told}")
        local.cache_rotten_total += max(rotten, 0)
        scrubbed = values.get("cache_scrubbed_bytes", 0)
        before = local.engine_statistics.get("cache_scrubbed_bytes", 0)
        local.cache_scrubbed_bytes_total += max(scrubbed - before, 0)
        local.engine_statistics = values

    def _note_progress(self, message: Progressed) -> None:
        local = self._local
        if message.epoch != local.node.epoch or local.node.state is not NodeState.LOADING:
            return
        local.take_progress(message)
        local.enter(Phase(message.phase))

    def mourn(self, death: Death) -> None:
        """The engine process ended: what it held is gone."""
        local = self._local
        self._desk.lose_all(f"the engine process ended: {death.reason}")
        local.report(Problem("engine", _obituary(self._me, death)))
        local.engine_statistics = {}
        local.set_facts(
            engine=None, capacity=None, loaded_epoch=0, loaded_digests=None, failure=None
        )
        self._post(EngineDied(death.reason))


def _obituary(me: NodeId, death: Death) -> str:
    told = f"node {short(me)}: the engine process ended ({death.reason}) and is started again"
    return f"{told}; its log ends with: {death.log_tail}" if death.log_tail else told
