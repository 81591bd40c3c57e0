"""Carries out the coordinator's duties while this node leads.

It decides nothing: ``coordinator_duty`` says what to do, and all it can do is propose. If this
node only believes that it leads, its proposals never commit.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, TypeVar, assert_never

from butterfly.config import NodeConfig
from butterfly.node.consensus import Consensus
from butterfly.node.model import ModelReader, in_daemon_thread
from butterfly.node.observing import Observer, Refuses
from butterfly.node.planning import demand_of, make_plan, resident
from butterfly.node.planning_offers import alike_parts, plan_beside
from butterfly.node.replica import Replica
from butterfly.node.reports import Reports
from butterfly.node.settings import admission_lease
from butterfly_cluster.commands import (
    ActAsCoordinator,
    AssignLayers,
    Order,
    Ordered,
    ReportPlanProblem,
)
from butterfly_cluster.duties import (
    Act,
    Demote,
    Duty,
    HandOver,
    MakePlan,
    Observations,
    PlanOffer,
    Policy,
    Promote,
    Propose,
    coordinator_duty,
)
from butterfly_cluster.offer_commands import PrepareModel, WithdrawModel
from butterfly_cluster.state import Acting, AssignedStage, ClusterState
from butterfly_cluster.steady_clock import steady_seconds
from butterfly_core.errors import ButterflyError, DoesNotFit
from butterfly_core.ids import NodeId, short

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.1
_PROPOSE_SECONDS: Final = 3.0
_PAUSE_AFTER_FAILURE_SECONDS: Final = 0.5
_PLAN_AGAIN_SECONDS: Final = 1.0


T = TypeVar("T")


class InThread(Protocol):
    """Runs something that takes its time off the loop."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]: ...


def policy_of(config: NodeConfig) -> Policy:
    """The configuration's words as the coordinator's policy."""
    cluster = config.cluster
    return Policy(
        quorum_size=cluster.quorum_size,
        dead_after_seconds=cluster.dead_after_seconds,
        plan_grace_seconds=cluster.plan_grace_seconds,
        rebalance_when_idle=cluster.rebalance == "idle",
        rebalance_after_seconds=cluster.rebalance_after_seconds,
        max_voters=cluster.max_voters,
        forget_dead_after_seconds=cluster.forget_dead_after_seconds,
    )


class Coordinator:
    """See the module."""

    def __init__(
        self,
        me: NodeId,
        config: NodeConfig,
        *,
        consensus: Consensus,
        replica: Replica,
        reports: Reports,
        models: ModelReader,
        refuses: Refuses,
        clock: Callable[[], float] = steady_seconds,
        in_thread: InThread = in_daemon_thread,
    ) -> None:
        """``refuses`` dials an address; ``clock`` in seconds; ``in_thread`` runs the planner.

        The planner has a thread of its own: those of the loop may all wait for host names.
        """
        self._me = me
        self._config = config
        self._policy = policy_of(config)
        self._lease_seconds = admission_lease(config, consensus.timing)
        self._consensus = consensus
        self._replica = replica
        self._observer = Observer(
            me, consensus=consensus, reports=reports, clock=clock, refuses=refuses
        )
        self._models = models
        self._clock = clock
        self._in_thread = in_thread
        self._leading = False
        self._acting = Acting(0, me)
        self._considered: frozenset[str] = frozenset()
        self._considered_epoch = 0
        self._plan_not_before = 0.0

    async def run(self) -> None:
        """Look and act for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._observer.watch_for_own_pauses())
            await self._look_and_act()

    async def _look_and_act(self) -> None:
        while True:
            await self._replica.changed.wait(_LOOK_SECONDS)
            self._observer.notice_own_pause()
            duty = await self._next_duty()
            if duty is None:
                continue
            try:
                await self._do(duty)
            except ButterflyError as error:
                log.warning("%s is not done, will look again: %s", type(duty).__name__, error)
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_SECONDS)

    async def _next_duty(self) -> Duty | None:
        if not self._may_act():
            self._leading = False
            return None
        if not self._leading:
            self._leading = True
            self._observer.begin()
            log.info("this node is the coordinator now (term %d)", self._consensus.term)
        term = self._consensus.term
        seen = self._observe(self._replica.state)
        told_news = await self._observer.probe(seen, self._replica.state)
        if not self._may_act() or self._consensus.term != term:
            return None  # deposed meanwhile: it must not claim the term of another leader
        self._observer.notice_own_pause()
        if told_news:
            seen = self._observe(self._replica.state)
        self._acting = Acting(seen.term, self._me)
        return coordinator_duty(self._replica.state, seen, self._policy)

    def _may_act(self) -> bool:
        """Leading is not enough: a majority must have been heard within the lease."""
        leads = self._consensus.leader == self._me
        return leads and self._consensus.leader_silent_seconds <= self._lease_seconds

    def _observe(self, state: ClusterState) -> Observations:
        same_epoch = self._considered_epoch == state.epoch
        models, offer = self._models, state.open_offer
        found = models.found if models.place == state.source else None
        offered = models.offered(offer.place) if offer else None
        return replace(
            self._observer.look(state),
            may_plan=self._clock() >= self._plan_not_before,
            considered=self._considered if same_epoch else frozenset(),
            described=found.described if found else None,
            root_of=found.root_of if found else None,
            offered=offered.described if offered else None,
            offered_root_of=offered.root_of if offered else None,
        )

    async def _do(self, duty: Duty) -> None:
        match duty:
            case Act(command=command):
                await self._act(command)
            case Propose(command=command):
                await self._propose(command)
            case MakePlan():
                await self._make_plan(duty)
            case PlanOffer():
                await self._plan_offer(duty)
            case Promote(node_id=node_id):
                log.info("node %s becomes a voter", short(node_id))
                await self._consensus.add_voter(node_id, timeout_seconds=_PROPOSE_SECONDS)
            case Demote(node_id=node_id):
                log.info("node %s is no voter any more", short(node_id))
                await self._consensus.remove_voter(node_id, timeout_seconds=_PROPOSE_SECONDS)
            case HandOver():
                log.info("another voter shall lead: this node is to vote no more")
                await self._consensus.hand_over()
            case _:
                assert_never(duty)

    async def _act(self, command: ActAsCoordinator) -> None:
        log.info("this node acts as the coordinator in term %d", command.by.term)
        await self._consensus.propose(command, timeout_seconds=_PROPOSE_SECONDS)

    async def _propose(self, order: Order) -> None:
        """In the name under which it was decided; one of somebody deposed changes nothing."""
        log.info("proposing %s", order.kind)
        command = Ordered(self._acting, order)
        await self._consensus.propose(command, timeout_seconds=_PROPOSE_SECONDS)

    async def _make_plan(self, duty: MakePlan) -> None:
        state = self._replica.state
        model = state.model
        if model is None:
            return
        before = state.assignment.stages if state.assignment else ()
        try:
            made = await self._in_thread(
                partial(
                    make_plan,
                    resident(model, self._config.model.dtype),
                    duty.machines,
                    demand_of(self._config),
                    before,
                )
            )
        except DoesNotFit as error:
            if state.plan_problem != str(error):
                log.error("no plan can be made: %s", error)
                await self._propose(ReportPlanProblem(str(error)))
            self._plan_not_before = self._clock() + _PLAN_AGAIN_SECONDS
            return
        engines = {member.node_id: member.engine or "" for member in duty.machines}
        stages = tuple(
            AssignedStage(stage.node_id, engines[stage.node_id], stage.layers)
            for stage in made.stages
        )
        considered = tuple(sorted(engines.values()))
        if state.is_intact and state.assignment and stages == state.assignment.stages:
            self._considered, self._considered_epoch = frozenset(considered), state.epoch
            return
        await self._propose(
            AssignLayers(duty.epoch, stages, made.kv_tokens, model.identity, considered)
        )

    async def _plan_offer(self, duty: PlanOffer) -> None:
        """Beside what is held; an offer that does not fit is withdrawn."""
        state = self._replica.state
        offer, held, assignment = state.open_offer, state.model, state.assignment
        found = self._models.offered(offer.place) if offer else None
        if offer is None or held is None or assignment is None or found is None:
            return
        spec, digests = found.described.spec, found.described.part_digests
        dtype, demand = self._config.model.dtype, demand_of(self._config)
        try:
            stages = await self._in_thread(
                partial(
                    plan_beside,
                    resident(held, dtype),
                    assignment,
                    resident(spec, dtype),
                    alike_parts(state.part_digests, digests),
                    duty.machines,
                    demand,
                )
            )
        except DoesNotFit as error:
            log.error("the offered model is withdrawn: %s", error)
            await self._propose(WithdrawModel(duty.number, str(error)))
            return
        considered = tuple(sorted(member.engine or "" for member in duty.machines))
        place = replace(offer.place, source_path=found.path)
        await self._propose(
            PrepareModel(duty.number, place, spec, digests, stages, demand.kv_tokens, considered)
        )
