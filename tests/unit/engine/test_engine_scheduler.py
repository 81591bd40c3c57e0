"""The scheduler's promises, one by one; `test_engine_scheduler_runs` tries them all at once."""

from typing import Any

import pytest

from butterfly_core.errors import InvalidValue, NotServing, ProtocolViolation, RequestError
from butterfly_core.generation import FinishReason, GenerationRequest
from butterfly_engine.batch import StepBatch
from butterfly_engine.params import SchedulerLimits
from butterfly_engine.scheduler import Scheduler


def scheduler(**limits: Any) -> Scheduler:
    return Scheduler(SchedulerLimits(**{"kv_blocks": 64, "block_size": 4, **limits}))


def request(
    request_id: str = "a", prompt_tokens: int = 5, tokens_max: int = 10, **more: Any
) -> GenerationRequest:
    return GenerationRequest(request_id, tuple(range(1, prompt_tokens + 1)), tokens_max, **more)


def next_step(subject: Scheduler) -> StepBatch:
    batch = subject.schedule()
    assert batch is not None
    return batch


def test_an_idle_scheduler_has_no_step() -> None:
    assert scheduler().schedule() is None


def test_a_step_carries_the_callers_epoch() -> None:
    subject = scheduler()
    subject.submit(request())

    batch = subject.schedule(epoch=9)

    assert batch is not None
    assert batch.epoch == 9


def test_a_prompt_then_one_token_a_step() -> None:
    subject = scheduler()
    subject.submit(request(tokens_max=2))

    first = next_step(subject)
    assert first.token_ids == (1, 2, 3, 4, 5)
    assert first.sequences[0].sampling is not None
    (emitted,) = subject.commit(first.step_id, (77,))
    assert (emitted.token_ids, emitted.finish) == ((77,), None)

    second = next_step(subject)
    assert second.token_ids == (77,)
    assert (second.sequences[0].start, second.sequences[0].length) == (5, 1)
    (emitted,) = subject.commit(second.step_id, (78,))
    assert (emitted.token_ids, emitted.finish) == ((78,), FinishReason.LENGTH)
    assert subject.schedule() is None


def test_a_long_prompt_comes_in_chunks_and_only_the_last_samples() -> None:
    subject = scheduler(token_budget=4)
    subject.submit(request(prompt_tokens=9))

    chunks = []
    for _ in range(2):
        chunks.append(next_step(subject))
        assert subject.commit(chunks[-1].step_id, ()) == []
    chunks.append(next_step(subject))

    assert [len(chunk.token_ids) for chunk in chunks] == [4, 4, 1]
    assert [chunk.sampled_count for chunk in chunks] == [0, 0, 1]


def test_chunks_of_one_prompt_follow_each_other_through_the_stages() -> None:
    subject = scheduler(token_budget=4, groups=3)
    subject.submit(request(prompt_tokens=12))

    starts = [next_step(subject).sequences[0].start for _ in range(3)]

    assert starts == [0, 4, 8]
    assert subject.schedule() is None


def test_no_more_steps_in_flight_than_groups() -> None:
    subject = scheduler(groups=2)
    for name in "abc":
        subject.submit(request(name))

    first = next_step(subject)
    next_step(subject)
    assert subject.schedule() is None
    subject.commit(first.step_id, (7,) * first.sampled_count)
    assert subject.schedule() is not None


def test_sequences_are_spread_over_the_groups() -> None:
    subject = scheduler(groups=2)
    for name in "abcdefgh":
        subject.submit(request(name))

    sizes = [len(next_step(subject).sequences) for _ in range(2)]

    assert sizes == [4, 4]


def test_uneven_groups_even_out() -> None:
    subject = scheduler(groups=2)
    for name in "abcdef":
        subject.submit(request(name))
    first, second = next_step(subject), next_step(subject)
    for name in "ab":
        subject.cancel(name)
    subject.commit(first.step_id, (7,) * first.sampled_count)
    third = next_step(subject)
    subject.commit(second.step_id, (7,) * second.sampled_count)

    fourth = next_step(subject)
    subject.commit(third.step_id, (7,) * third.sampled_count)
    fifth = next_step(subject)

    assert {len(fourth.sequences), len(fifth.sequences)} == {2}


def test_decodes_of_concurrent_requests_share_a_step() -> None:
    subject = scheduler()
    for name in "abc":
        subject.submit(request(name))
    first = next_step(subject)
    subject.commit(first.step_id, (7, 8, 9))

    assert next_step(subject).token_ids == (7, 8, 9)


def test_prompts_are_not_starved_by_decodes() -> None:
    subject = scheduler(token_budget=2)
    for name in "ab":
        subject.submit(request(name, prompt_tokens=1, tokens_max=90))
    first = next_step(subject)
    subject.commit(first.step_id, (7, 7))
    subject.submit(request("c", prompt_tokens=2))

    served = set()
    for _ in range(4):
        batch = next_step(subject)
        served |= {one.sequence_id for one in batch.sequences}
        subject.commit(batch.step_id, (7,) * batch.sampled_count)

    assert served == {1, 2, 3}


def test_a_small_budget_goes_round_all_sequences() -> None:
    subject = scheduler(token_budget=2)
    for name in "abcde":
        subject.submit(request(name, prompt_tokens=1, tokens_max=90))
    served: list[int] = []
    for _ in range(30):
        batch = next_step(subject)
        served += [one.sequence_id for one in batch.sequences]
        subject.commit(batch.step_id, (7,) * batch.sampled_count)

    assert {served[-20:].count(name) for name in range(1, 6)} == {4}


def test_running_sequences_keep_a_block_each_to_grow_into() -> None:
    subject = scheduler(kv_blocks=4, block_size=4)
    for name in "abc":
        subject.submit(request(name, prompt_tokens=4))

    assert len(next_step(subject).sequences) == 2


def test_an_answer_that_continues_is_computed_after_its_prompt_and_one_by_one() -> None:
    subject = scheduler(groups=2)
    subject.submit(request(prompt_tokens=3, tokens_max=4, emitted=(50, 51, 52)))

    prompt, answer = next_step(subject), next_step(subject)
    assert subject.commit(prompt.step_id, ()) == []
    (emitted,) = subject.commit(answer.step_id, (53,))

    assert (prompt.token_ids, answer.token_ids) == ((1, 2, 3), (50, 51, 52))
    assert [step.sequences[0].one_by_one for step in (prompt, answer)] == [False, True]
    assert [step.sampled_count for step in (prompt, answer)] == [0, 1]
    assert emitted.token_ids == (53,)
    assert emitted.finish is FinishReason.LENGTH


@pytest.mark.parametrize(
    ("more", "finish"),
    [
        ({}, FinishReason.STOP),
        ({"ignore_eos": True}, None),
        ({"ignore_eos": True, "stop_token_ids": (9,)}, None),
    ],
)
def test_the_models_end_of_sequence_ends_an_answer_unless_ignored(
    more: dict[str, Any], finish: FinishReason | None
) -> None:
    subject = scheduler(eos_token_ids=(9,))
    subject.submit(request(**more))

    (emitted,) = subject.commit(next_step(subject).step_id, (9,))

    assert (emitted.token_ids, emitted.finish) == ((9,), finish)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_a_requests_own_stop_token_ends_its_answer(ignore_eos: bool) -> None:
    subject = scheduler(eos_token_ids=(9,))
    subject.submit(request(stop_token_ids=(33,), ignore_eos=ignore_eos))

    (emitted,) = subject.commit(next_step(subject).step_id, (33,))

    assert emitted.finish is FinishReason.STOP


def test_an_answer_ends_where_the_context_does() -> None:
    subject = scheduler(context_length=7)
    subject.submit(request(prompt_tokens=5, tokens_max=100))

    finishes = [subject.commit(next_step(subject).step_id, (7,))[0].finish for _ in range(2)]

    assert finishes == [None, FinishReason.LENGTH]


def test_the_newest_sequence_gives_way_and_loses_no_token() -> None:
    subject = scheduler(kv_blocks=4, block_size=4)
    subject.submit(request("old", prompt_tokens=4))
    subject.submit(request("new", prompt_tokens=3, tokens_max=8))
    emitted: dict[str, list[int]] = {"old": [], "new": []}
    token = 100
    while (batch := subject.schedule()) is not None:
        count = batch.sampled_count
        for event in subject.commit(batch.step_id, tuple(range(token, token + count))):
            emitted[event.request_id] += event.token_ids
        token += count

    assert subject.statistics()["preemptions_total"] >= 1
    assert {name: len(tokens) for name, tokens in emitted.items()} == {"old": 10, "new": 8}
    assert subject.statistics()["kv_blocks_free"] == 4


def test_a_sequence_with_a_step_in_flight_does_not_give_way() -> None:
    subject = scheduler(kv_blocks=4, block_size=1, groups=2)
    for name in ("old", "new"):
        subject.submit(request(name, prompt_tokens=1))
    old, new = next_step(subject), next_step(subject)
    subject.commit(old.step_id, (7,))
    old = next_step(subject)
    subject.commit(new.step_id, (8,))
    new = next_step(subject)
    subject.commit(old.step_id, (9,))

    assert subject.schedule() is None, "the old one needs a fifth block and gave its own up"
    assert subject.statistics()["preemptions_total"] == 1
    assert [event.token_ids for event in subject.commit(new.step_id, (10,))] == [(10,)]
    assert next_step(subject).token_ids == (10,)


def test_cancelling_a_waiting_request_ends_it_at_once() -> None:
    subject = scheduler()
    subject.submit(request())

    (event,) = subject.cancel("a")

    assert event.finish is FinishReason.CANCELLED
    assert subject.schedule() is None
    assert subject.cancel("a") == []


def test_cancelling_a_step_in_flight_frees_its_blocks_and_drops_its_token() -> None:
    subject = scheduler()
    subject.submit(request())
    batch = next_step(subject)

    subject.cancel("a")

    assert subject.statistics()["kv_blocks_free"] == 64
    assert subject.commit(batch.step_id, (7,)) == []


def test_an_id_may_be_used_again_while_the_cancelled_step_is_in_flight() -> None:
    subject = scheduler(groups=2)
    subject.submit(request())
    old = next_step(subject)
    subject.cancel("a")
    subject.submit(request())
    new = next_step(subject)

    assert subject.commit(old.step_id, (7,)) == []
    assert [event.token_ids for event in subject.commit(new.step_id, (8,))] == [(8,)]


def test_abort_ends_every_request_with_the_error() -> None:
    subject = scheduler(sequences_max=1)
    for name in "ab":
        subject.submit(request(name))
    next_step(subject)

    ended = subject.abort("the cable broke")

    assert [(event.request_id, event.finish, event.error) for event in ended] == [
        ("a", FinishReason.ERROR, "the cable broke"),
        ("b", FinishReason.ERROR, "the cable broke"),
    ]
    assert subject.statistics()["kv_blocks_free"] == 64
    assert subject.schedule() is None


def test_the_waiting_queue_has_a_limit() -> None:
    subject = scheduler(waiting_max=2)
    subject.submit(request("a"))
    subject.submit(request("b"))

    with pytest.raises(NotServing, match="waiting"):
        subject.submit(request("c"))
    next_step(subject)
    subject.submit(request("c"))


def test_no_more_sequences_run_than_allowed() -> None:
    subject = scheduler(sequences_max=2)
    for name in "abc":
        subject.submit(request(name))

    assert len(next_step(subject).sequences) == 2


@pytest.mark.parametrize(
    ("impossible", "says"),
    [
        (request(prompt_tokens=0), "no token"),
        (request(prompt_tokens=16), "16 tokens"),
        (request(tokens_max=0), "max_tokens"),
        (request(tokens_max=2, emitted=(1, 2)), "already"),
        (GenerationRequest("a", (300,), 5), "299"),
        (GenerationRequest("a", (-1,), 5), "299"),
    ],
)
def test_an_impossible_request_is_refused_with_the_reason(
    impossible: GenerationRequest, says: str
) -> None:
    subject = scheduler(kv_blocks=4, vocab_size=300)

    with pytest.raises(RequestError, match=says):
        subject.submit(impossible)


def test_a_request_may_not_run_twice_at_once() -> None:
    subject = scheduler()
    subject.submit(request())

    with pytest.raises(RequestError, match="already running"):
        subject.submit(request())


@pytest.mark.parametrize(
    ("step_id", "tokens", "says"),
    [(99, (1,), "not in flight"), (1, (), "0 tokens for 1"), (1, (300,), "token 300")],
)
def test_an_answer_that_fits_no_step_is_refused(
    step_id: int, tokens: tuple[int, ...], says: str
) -> None:
    subject = scheduler(vocab_size=300)
    subject.submit(request())
    next_step(subject)

    with pytest.raises(ProtocolViolation, match=says):
        subject.commit(step_id, tokens)


@pytest.mark.parametrize("name", ["kv_blocks", "token_budget", "groups", "sequences_max"])
def test_a_limit_must_allow_something(name: str) -> None:
    with pytest.raises(InvalidValue, match=name):
        scheduler(**{name: 0})
