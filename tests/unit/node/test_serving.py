import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from butterfly.channel import Cancel, Emitted, Submit, ToEngine
from butterfly.node import serving
from butterfly.node.local import Local
from butterfly.node.replica import Replica
from butterfly.node.serving import HeadDesk, Ingress
from butterfly_cluster.commands import MarkDown, PassValidation, ReportBroken, ReportWarm
from butterfly_cluster.lifecycle import Node, NodeState, Phase
from butterfly_cluster.node_duties import Facts
from butterfly_core.errors import EngineLost, NotServing, Refused, RequestError, Unreachable
from butterfly_core.generation import FinishReason, GenerationRequest, TokensEmitted
from tests.support.clusters import (
    active,
    assigned,
    committed,
    digests,
    node,
    registered,
    spec,
    validated,
)
from tests.support.offers import OFFERED, PLACE, PREPARING, READY, ROOT, SWITCH

REQUEST = GenerationRequest("r", (1, 2), 4)
END = FinishReason.LENGTH


class FakeEngine:
    """Answers a Submit with the tokens that the test laid out for its epoch."""

    def __init__(self) -> None:
        self.desk: HeadDesk | None = None
        self.sent: list[ToEngine] = []
        self.script: dict[int, list[TokensEmitted | str]] = {}

    async def send(self, message: ToEngine, connected: Any = None) -> None:
        self.sent.append(message)
        if isinstance(message, Submit) and self.desk is not None:
            for step in self.script.get(message.epoch, []):
                if isinstance(step, str):
                    self.desk.lose_all(step)
                else:
                    self.desk.deliver(Emitted(message.epoch, (step,)))


class World:
    def __init__(self, me: int = 1) -> None:
        self.local = Local(Facts(registered(1)), node=Node(NodeState.OPERATIONAL, 1))
        self.replica = Replica(self.local.changed)
        self.replica.restore_state(active(2))
        self.engine = FakeEngine()
        self.desk = self.engine.desk = HeadDesk(self.engine, self.replica, node(1))  # type: ignore[arg-type] # a fake
        self.remote: list[tuple[int, GenerationRequest]] = []
        self.problem: str | None = None
        world = self

        class Pool:
            async def stream(
                self, address: Any, method: str, body: Mapping[str, Any], *, expect: Any
            ) -> AsyncIterator[Mapping[str, Any]]:
                request = GenerationRequest(
                    body["request"]["request_id"],
                    tuple(body["request"]["prompt"]),
                    body["request"]["tokens_max"],
                    emitted=tuple(body["request"]["emitted"]),
                )
                world.remote.append((body["epoch"], request))
                yield {"request_id": request.request_id, "token_ids": [9], "finish": "length"}

        class Addresses:
            def of(self, _: Any) -> str:
                return "there"

        class Models:
            found = SimpleNamespace(text="the tokenizer")
            place: Any = None
            name = "tiny"

        self.models = Models()
        self.ingress = Ingress(
            node(me),
            self.local,
            replica=self.replica,
            models=self.models,  # type: ignore[arg-type] # fakes of what the ingress uses
            desk=self.desk,
            pool=Pool(),  # type: ignore[arg-type]
            addresses=Addresses(),  # type: ignore[arg-type]
            admission_problem=lambda: self.problem,
        )

    async def answer(self, request: GenerationRequest = REQUEST) -> list[TokensEmitted]:
        async with asyncio.timeout(30):
            return [piece async for piece in self.ingress.generate(request)]


def piece(epoch: int, *ids: int, finish: FinishReason | None = None) -> TokensEmitted:
    return TokensEmitted(f"r-{epoch}-0", ids, finish)


async def test_an_answer_comes_from_the_own_engine_when_this_node_is_the_head() -> None:
    world = World()
    world.engine.script = {1: [piece(1, 3), piece(1, 4, finish=END)]}

    pieces = await world.answer()

    assert [(p.request_id, p.token_ids) for p in pieces] == [("r", (3,)), ("r", (4,))]
    assert world.ingress.active_requests == world.desk.active_requests == 0


async def test_an_answer_goes_on_in_the_next_epoch_with_what_was_emitted() -> None:
    world = World()
    world.engine.script = {1: [piece(1, 3), "its neighbour died"]}
    asked = asyncio.create_task(world.answer())
    await asyncio.sleep(0)
    state = committed([ReportBroken(1, node(1), "x"), assigned(2, [2, 1])], world.replica.state)
    while not world.engine.sent:
        await asyncio.sleep(0)
    moved = active(2)
    world.replica.restore_state(
        committed([], state.__class__(**{**_fields(state), "active_epoch": 2}))
    )
    assert moved.epoch == 1

    pieces = await asked

    assert [p.token_ids for p in pieces] == [(3,), (9,)]
    assert [(epoch, r.emitted, r.request_id) for epoch, r in world.remote] == [(2, (3,), "r-2-1")]


def _fields(state: Any) -> dict[str, Any]:
    return {name: getattr(state, name) for name in state.__dataclass_fields__}


async def test_a_client_that_leaves_cancels_its_request() -> None:
    world = World()
    world.engine.script = {1: [piece(1, 3)]}
    answer = world.ingress.generate(REQUEST)

    assert (await anext(answer)).token_ids == (3,)
    await answer.aclose()

    assert world.engine.sent[-1] == Cancel("r-1-0")
    assert world.desk.active_requests == 0


async def test_an_impossible_request_is_the_clients_error_and_is_not_tried_again() -> None:
    world = World()
    refused = TokensEmitted("r-1-0", (), FinishReason.ERROR, "RequestError: too long")
    world.engine.script = {1: [refused]}

    with pytest.raises(RequestError, match="too long"):
        await world.answer()
    assert sum(isinstance(message, Submit) for message in world.engine.sent) == 1


async def test_a_pipeline_that_ended_is_tried_again_and_a_full_queue_is_not() -> None:
    world = World()
    told = TokensEmitted("r-1-0", (), FinishReason.ERROR, "NotServing: 256 requests wait")
    world.engine.script = {1: [told]}

    with pytest.raises(NotServing, match="256 requests wait"):
        await world.answer()


async def test_the_same_epoch_is_tried_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "SAME_EPOCH_SECONDS", 0.0)
    monkeypatch.setattr(serving, "_LOOK_SECONDS", 0.0)
    world = World()
    world.engine.script = {1: ["the control connection broke"]}

    with pytest.raises(NotServing, match="8 times"):
        await world.answer()
    assert sum(isinstance(message, Submit) for message in world.engine.sent) == 8


@pytest.mark.parametrize("state", [NodeState.LOADING, NodeState.READY, NodeState.COLD])
def test_nothing_is_served_before_the_node_is_operational(state: NodeState) -> None:
    world = World()
    world.local.node = Node(state, 1)
    world.local.enter(Phase.VALIDATION)

    with pytest.raises(NotServing) as refusal:
        world.ingress.text()
    assert refusal.value.phase == "validation"


def test_a_node_without_layers_serves_an_active_cluster_and_no_other() -> None:
    world = World(me=3)
    world.local.node = Node(NodeState.JOINING, 1)

    assert world.ingress.text() == "the tokenizer"  # type: ignore[comparison-overlap]
    world.replica.restore_state(validated(2))
    with pytest.raises(NotServing):
        world.ingress.text()


def test_a_minority_and_a_leaving_node_say_so() -> None:
    world = World()
    world.problem = "no coordinator heard"
    with pytest.raises(NotServing, match="no coordinator heard"):
        world.ingress.text()
    world.local.set_facts(draining=True)
    with pytest.raises(NotServing, match="leaving"):
        world.ingress.text()


async def test_a_head_takes_only_requests_of_its_own_epoch() -> None:
    world = World()
    for epoch in (0, 2):
        with pytest.raises(Refused, match=f"epoch {epoch}"):
            await anext(world.desk.generate(REQUEST, epoch))
    world.replica.restore_state(committed([MarkDown(node(2), "x")], active(2)))


async def test_a_lost_engine_reaches_every_answer_under_way() -> None:
    world = World()
    answers = [
        world.desk.generate(GenerationRequest(name, (1,), 4), 1) for name in ("first", "second")
    ]
    asked = [asyncio.ensure_future(anext(answer)) for answer in answers]
    while world.desk.active_requests < 2:
        await asyncio.sleep(0)

    world.desk.lose_all("killed")

    for future in asked:
        with pytest.raises(EngineLost, match="killed"):
            await future
    assert world.desk.active_requests == 0


def test_losses_are_what_another_epoch_can_mend() -> None:
    assert (Unreachable, EngineLost, Refused) == serving._LOST


async def test_new_requests_wait_from_the_proof_of_another_model_until_it_serves() -> None:
    world = World()
    for state in (OFFERED, PREPARING, active(2)):
        world.replica.restore_state(state)
        await asyncio.wait_for(world.ingress.ready(), 10)
    world.replica.restore_state(READY)
    waiting = asyncio.create_task(world.ingress.ready())

    switched = committed([SWITCH], READY)
    reports = [digests(switched, number) for number in (1, 2)]
    proven = committed([*reports, PassValidation(2, ROOT)], switched)
    warm = committed([ReportWarm(2, node(1))], proven)
    for state in (READY, switched, proven, warm):
        world.replica.restore_state(state)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done(), "this node reads the tokenizer of the old model still"
    world.models.place = PLACE
    world.replica.restore_state(warm)

    await asyncio.wait_for(waiting, 10)
    assert world.ingress.weights() == ROOT


async def test_a_switch_that_does_not_end_keeps_nobody_waiting_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "SWITCH_SECONDS", 0.0)
    world = World()
    world.replica.restore_state(READY)

    await asyncio.wait_for(world.ingress.ready(), 10)


async def test_an_answer_does_not_go_on_with_another_model_than_it_began_with() -> None:
    world = World()
    request = replace(REQUEST, model=spec().identity)
    world.engine.script = {1: [piece(1, 3), "the next epoch began"]}
    answer = world.ingress.generate(request)
    assert (await anext(answer)).token_ids == (3,)

    world.replica.restore_state(committed([SWITCH], READY))

    with pytest.raises(NotServing, match="another model took over before this answer ended"):
        await anext(answer)
    assert world.remote == []


async def test_a_request_that_was_encoded_for_the_old_model_never_reaches_the_new_one() -> None:
    world = World()
    world.replica.restore_state(committed([SWITCH], READY))

    with pytest.raises(NotServing, match="ask again"):
        await world.answer(replace(REQUEST, model=spec().identity))
    assert world.engine.sent == []
