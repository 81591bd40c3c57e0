"""A pipeline in life: continued, cancelled, cut, closed; everyone hears of an end exactly once."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from butterfly_core.errors import (
    NotServing,
    RequestError,
    Unreachable,
)
from butterfly_core.generation import FinishReason, SamplingParams, TokensEmitted
from butterfly_engine.params import SchedulerLimits
from butterfly_engine.stage import Stage
from tests.integration.engine.conftest import MadeModel
from tests.support.engine_pipelines import Pipeline, make_stages

PROMPT = list(range(40, 60))
CUTS = ((0, 4), (0, 2, 4), (0, 1, 3, 4))
LONG = 400
SECONDS = 30.0
CutStages = Callable[[Sequence[int]], list[Stage]]

every_cut = pytest.mark.parametrize("cuts", CUTS, ids=lambda cuts: f"{len(cuts) - 1}-stages")


@pytest.fixture
def cut(made: Callable[..., MadeModel]) -> CutStages:
    tiny, tensors, _ = made("llama")
    return lambda cuts: make_stages(tiny.config, tensors, cuts)


def limits(stages: Sequence[object], **more: int) -> SchedulerLimits:
    settings: dict[str, Any] = {"kv_blocks": 64, "block_size": 8, "token_budget": 32, **more}
    return SchedulerLimits(groups=len(stages), vocab_size=300, **settings)


@every_cut
def test_an_answer_continues_elsewhere_as_if_nothing_had_happened(
    cut: CutStages, cuts: tuple[int, ...]
) -> None:
    sampling = SamplingParams(temperature=1.0, top_p=0.95, seed=1234)
    stages = cut(cuts)
    with Pipeline(stages, limits(stages)) as pipeline:
        pipeline.submit("whole", PROMPT, 24, sampling)
        pipeline.submit("another", PROMPT[3:], 30, SamplingParams(seed=5))
        pipeline.answers.wait_end("whole")
        whole = pipeline.answers.tokens("whole")
    other = cut((0, 3, 4))

    with Pipeline(other, limits(other, token_budget=6), epoch=8) as pipeline:
        pipeline.submit("rest", PROMPT, 24, sampling, emitted=tuple(whole[:9]))
        assert pipeline.answers.wait_end("rest") is FinishReason.LENGTH
        rest = pipeline.answers.tokens("rest")

    assert len(whole) == 24
    assert rest == whole[9:]


@every_cut
def test_cancelling_one_leaves_the_others_answers_alone(
    cut: CutStages, cuts: tuple[int, ...]
) -> None:
    stages = cut(cuts)
    with Pipeline(stages, limits(stages)) as pipeline:
        pipeline.submit("kept", PROMPT, 30)
        pipeline.answers.wait_end("kept")
        alone = pipeline.answers.tokens("kept")

        pipeline.submit("gone", PROMPT[::-1], LONG)
        pipeline.answers.wait(lambda: len(pipeline.answers.events) > 40)
        pipeline.submit("beside", PROMPT, 30)
        pipeline.head.cancel("gone")

        assert pipeline.answers.wait_end("gone") is FinishReason.CANCELLED
        assert pipeline.answers.wait_end("beside") is FinishReason.LENGTH
        assert pipeline.answers.tokens("beside") == alone
        assert len(pipeline.answers.tokens("gone")) < LONG
        assert pipeline.head.statistics()["kv_blocks_free"] == 64
        pipeline.head.cancel("gone")
        assert len(pipeline.answers.ends("gone")) == 1


@every_cut
def test_a_warm_up_runs_through_all_stages_unseen(cut: CutStages, cuts: tuple[int, ...]) -> None:
    stages = cut(cuts)
    with Pipeline(stages, limits(stages)) as pipeline:
        assert pipeline.head.warm_up(SECONDS) > 0

        assert pipeline.answers.events == []
        assert pipeline.head.statistics()["kv_blocks_free"] == 64
        for follower in pipeline.followers:
            assert follower.statistics()["steps_total"] == 2


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_lost_link_ends_every_request_and_is_told_once_everywhere(
    cut: CutStages, broken: int
) -> None:
    stages = cut((0, 1, 3, 4))
    with Pipeline(stages, limits(stages, sequences_max=1)) as pipeline:
        pipeline.submit("running", PROMPT, LONG)
        pipeline.submit("waiting", PROMPT, LONG)
        pipeline.answers.wait(lambda: len(pipeline.answers.events) > 3)

        pipeline.links[broken].cut()

        for name in ("running", "waiting"):
            assert pipeline.answers.wait_end(name) is FinishReason.ERROR
            (end,) = pipeline.answers.ends(name)
            assert end.error is not None
            assert "epoch 7 was lost" in end.error
        with pytest.raises(NotServing, match="lost"):
            pipeline.submit("late", PROMPT, 5)
    heads = [error for place, error in pipeline.lost if place == 0]
    assert [type(error) for error in heads] == [Unreachable]
    assert len({place for place, _ in pipeline.lost}) == len(pipeline.lost)


@every_cut
def test_closing_ends_every_request_and_tells_no_loss(
    cut: CutStages, cuts: tuple[int, ...]
) -> None:
    stages = cut(cuts)
    with Pipeline(stages, limits(stages)) as pipeline:
        pipeline.submit("a", PROMPT, LONG)
        pipeline.answers.wait(lambda: len(pipeline.answers.events) > 3)

        assert pipeline.head.close()
        assert pipeline.head.close()

        (end,) = pipeline.answers.ends("a")
        assert end.finish is FinishReason.ERROR
        assert "closed" in (end.error or "")
        with pytest.raises(NotServing, match="closed"):
            pipeline.submit("b", PROMPT, 5)
    assert not [error for place, error in pipeline.lost if place == 0]


def test_a_callback_may_submit_and_cancel(cut: CutStages) -> None:
    stages = cut((0, 2, 4))
    with Pipeline(stages, limits(stages)) as pipeline:
        take = pipeline.answers.take

        def react(events: list[TokensEmitted]) -> None:
            take(events)
            if any(event.request_id == "first" and event.finish for event in events):
                pipeline.submit("second", PROMPT, LONG)
                pipeline.head.cancel("second")

        pipeline.head._outbox._on_tokens = react
        pipeline.submit("first", PROMPT, 3)

        assert pipeline.answers.wait_end("second") is FinishReason.CANCELLED


def test_an_impossible_request_harms_nobody(cut: CutStages) -> None:
    stages = cut((0, 4))
    with Pipeline(stages, limits(stages)) as pipeline:
        with pytest.raises(RequestError):
            pipeline.submit("a", [300], 5)
        pipeline.submit("b", PROMPT, 5)

        assert pipeline.answers.wait_end("b") is FinishReason.LENGTH
