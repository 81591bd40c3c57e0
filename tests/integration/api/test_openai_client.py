"""The official client against a real socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import openai
import pytest
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from butterfly.api.limits import ApiLimits
from butterfly_core.errors import EngineLost, NotServing, RequestError
from tests.support.api_fakes import FakeServing

Start = Callable[..., Awaitable[str]]
Connect = Callable[..., openai.AsyncOpenAI]
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    clients: list[openai.AsyncOpenAI] = []

    def make(url: str, *, api_key: str = "unused") -> openai.AsyncOpenAI:
        clients.append(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=api_key, max_retries=0))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


async def test_a_chat_is_answered(start: Start, connect: Connect) -> None:
    client = connect(await start())

    answer = await client.chat.completions.create(model="toy", messages=HELLO)

    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "toy"
    assert answer.choices[0].message.content == "Hello there."
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (8, 13)


async def test_a_completion_is_answered(start: Start, connect: Connect) -> None:
    client = connect(await start())

    answer = await client.completions.create(model="toy", prompt="Once", max_tokens=5)

    assert answer.id.startswith("cmpl-")
    assert answer.choices[0].text == "Hello"
    assert answer.choices[0].finish_reason == "length"


async def test_a_chat_streams_its_text_and_its_usage(start: Start, connect: Connect) -> None:
    client = connect(await start())

    stream = await client.chat.completions.create(
        model="toy", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "Hello there."
    assert [delta.role for delta in deltas if delta.role] == ["assistant"]
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 21
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_completion_streams(start: Start, connect: Connect) -> None:
    client = connect(await start())

    stream = await client.completions.create(model="toy", prompt="Once", stream=True)
    chunks = [chunk async for chunk in stream]

    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello there."
    assert all(chunk.usage is None for chunk in chunks)


async def test_several_prompts_and_answers_keep_their_places(
    start: Start, connect: Connect, serving: FakeServing
) -> None:
    client = connect(await start())

    answer = await client.completions.create(model="toy", prompt=["ab", "cde"], n=2, seed=7)

    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert {choice.text for choice in answer.choices} == {"Hello there."}
    by_id = sorted(serving.requests, key=lambda request: request.request_id)
    assert [len(request.prompt) for request in by_id] == [2, 2, 3, 3]
    assert [request.sampling.seed for request in by_id] == [7, 8, 7, 8]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 5


async def test_a_stop_string_ends_the_answer_and_the_generation(
    start: Start, connect: Connect, serving: FakeServing
) -> None:
    client = connect(await start())

    answer = await client.chat.completions.create(model="toy", messages=HELLO, stop=["o t"])

    assert answer.choices[0].message.content == "Hell"
    assert answer.choices[0].finish_reason == "stop"
    assert serving.running == 0


async def test_models_are_listed_and_shown(start: Start, connect: Connect) -> None:
    client = connect(await start())

    listed = [model.id async for model in client.models.list()]
    shown = await client.models.retrieve("toy")

    assert listed == ["toy"]
    assert shown.owned_by == "butterfly"


def test_the_synchronous_client_works_too(start: Start) -> None:
    """Runs in a loop of its own thread, since the client blocks."""

    async def session() -> tuple[str | None, str]:
        url = await start()
        return await asyncio.to_thread(talk, url)

    def talk(url: str) -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
            whole = client.chat.completions.create(model="toy", messages=HELLO)
            stream = client.chat.completions.create(model="toy", messages=HELLO, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        return whole.choices[0].message.content, text

    assert asyncio.run(session()) == ("Hello there.", "Hello there.")


async def test_an_unknown_model_is_not_found(start: Start, connect: Connect) -> None:
    client = connect(await start())

    with pytest.raises(openai.NotFoundError) as refused:
        await client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": 3}, "temperature"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"n": 1000}, "n"),
        ({"max_tokens": 100_000}, "messages"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    start: Start, connect: Connect, extra: dict[str, object], param: str
) -> None:
    client = connect(await start())

    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(model="toy", messages=HELLO, extra_body=extra)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


async def test_a_request_the_engine_refuses_is_the_clients_fault(
    start: Start, connect: Connect, serving: FakeServing
) -> None:
    serving.fail_after, serving.failure = 0, RequestError("the prompt needs more blocks")
    client = connect(await start())

    with pytest.raises(openai.BadRequestError, match="more blocks"):
        await client.chat.completions.create(model="toy", messages=HELLO, stream=True)


async def test_a_wrong_key_is_refused_and_a_right_one_is_not(
    start: Start, connect: Connect
) -> None:
    url = await start(api_keys=frozenset({"a-key-of-16-chars", "another-key-of-16"}))

    with pytest.raises(openai.AuthenticationError) as refused:
        await connect(url, api_key="wrong-key-of-16-chars").models.list()
    assert refused.value.code == "invalid_api_key"
    assert (await connect(url, api_key="another-key-of-16").models.list()).data


async def test_a_cluster_that_is_not_ready_says_when_to_ask_again(
    start: Start, connect: Connect, serving: FakeServing
) -> None:
    serving.refuse = NotServing("Loading", phase="loading_weights", retry_after_seconds=7)
    client = connect(await start())

    with pytest.raises(openai.InternalServerError) as refused:
        await client.chat.completions.create(model="toy", messages=HELLO)
    assert refused.value.status_code == 503
    assert refused.value.response.headers["Retry-After"] == "7"
    assert "loading_weights" in refused.value.message


async def test_a_lost_engine_breaks_a_stream_with_an_error(
    start: Start, connect: Connect, serving: FakeServing
) -> None:
    serving.fail_after, serving.failure = 5, EngineLost("the engine of node ab died")
    client = connect(await start())
    text = ""

    async def read(stream: openai.AsyncStream[ChatCompletionChunk]) -> None:
        nonlocal text
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""

    stream = await client.chat.completions.create(model="toy", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError, match="node ab died"):
        await read(stream)
    assert text == "Hello"


async def test_many_requests_run_at_once(
    start: Start, connect: Connect, serving: FakeServing
) -> None:
    serving.gate = asyncio.Event()
    client = connect(await start())

    async def ask() -> str | None:
        answer = await client.chat.completions.create(model="toy", messages=HELLO)
        return answer.choices[0].message.content

    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(ask()) for _ in range(20)]
        await serving.until_running(20)
        serving.gate.set()
    assert {task.result() for task in asked} == {"Hello there."}


async def test_too_many_requests_at_once_are_told_to_wait(
    start: Start, connect: Connect, serving: FakeServing
) -> None:
    serving.gate = asyncio.Event()
    client = connect(await start(limits=ApiLimits(requests_in_flight_max=1)))

    async with asyncio.TaskGroup() as group:
        first = group.create_task(client.completions.create(model="toy", prompt="a"))
        await serving.until_running(1)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.completions.create(model="toy", prompt="b")
        serving.gate.set()
    assert refused.value.response.headers["Retry-After"] == "1"
    assert first.result().choices[0].text == "Hello there."


async def test_the_client_waits_and_asks_again_by_itself(
    start: Start, connect: Connect, serving: FakeServing
) -> None:
    """``Retry-After`` is what the official client obeys: a short election goes unnoticed."""
    serving.refuse = NotServing("electing", phase="election", retry_after_seconds=1)
    client = connect(await start()).with_options(max_retries=2)

    async with asyncio.TaskGroup() as group:
        asked = group.create_task(client.completions.create(model="toy", prompt="a"))
        await serving.was_refused.wait()
        serving.refuse = None
    assert asked.result().choices[0].text == "Hello there."
