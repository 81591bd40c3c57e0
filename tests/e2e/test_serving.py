"""The main road: real processes find each other, split a model, prove it and answer."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.local_cluster import LocalCluster, local_cluster
from tests.support.tiny_models import (
    TinyModel,
    make_tiny_model,
    reference_greedy,
    reference_model,
)

pytestmark = pytest.mark.e2e

PROMPTS = [[256, 72, 101, 108, 108, 111], [256, *b"The quick brown fox"], [256, 7, 7, 7]]
TOKENS = 12


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("model"), layers=6, tokenizer=True)


@pytest.fixture(scope="module")
def cluster(tiny: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    model = {"source_type": "filesystem", "source_path": str(tiny.folder), "name": "tiny"}
    with local_cluster(tmp_path_factory.mktemp("cluster"), model, equal=True) as running:
        running.wait_until_operational()
        yield running


@pytest.fixture
def clients(cluster: LocalCluster) -> Iterator[list[openai.OpenAI]]:
    with ExitStack() as stack:
        yield [
            stack.enter_context(openai.OpenAI(base_url=f"{n.url}/v1", api_key="none"))
            for n in cluster.nodes
        ]


def test_three_equal_nodes_become_one_cluster_and_agree_on_everything(
    cluster: LocalCluster,
) -> None:
    seen = [node.status() for node in cluster.nodes]

    for key in ("cluster_id", "coordinator", "epoch", "merkle_root", "cluster_size"):
        assert len({str(status[key]) for status in seen}) == 1, key
    assert {status["layers"] for status in seen} == {
        member["layers"] for member in seen[0]["members"]
    }
    assert all(member["voter"] for member in seen[0]["members"])
    assert [status["errors"] for status in seen] == [[], [], []]


def test_any_node_gives_the_tokens_that_transformers_gives(
    tiny: TinyModel, clients: list[openai.OpenAI]
) -> None:
    whole = reference_model(tiny)
    for client, prompt in zip(clients, PROMPTS, strict=True):
        answer = client.completions.create(
            model="tiny",
            prompt=prompt,
            max_tokens=TOKENS,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        expected = reference_greedy(whole, prompt, TOKENS)

        assert answer.choices[0].text == _decoded(tiny, expected)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == TOKENS


def _decoded(tiny: TinyModel, ids: list[int]) -> str:
    from tokenizers import Tokenizer

    text: str = Tokenizer.from_file(str(tiny.folder / "tokenizer.json")).decode(ids)
    return text


def test_chat_streams_the_same_answer_from_every_node(clients: list[openai.OpenAI]) -> None:
    def ask(client: openai.OpenAI, **more: Any) -> Any:
        return client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Say something"}],
            max_completion_tokens=TOKENS,
            temperature=0,
            **more,
        )

    whole = [ask(client).choices[0].message.content for client in clients]
    streamed = [
        "".join(chunk.choices[0].delta.content or "" for chunk in ask(client, stream=True))
        for client in clients
    ]

    assert len({*whole, *streamed}) == 1
    assert whole[0]


def test_a_seed_makes_a_sampled_answer_the_same_on_every_node(
    clients: list[openai.OpenAI],
) -> None:
    answers = [
        client.completions.create(
            model="tiny", prompt="x", max_tokens=TOKENS, temperature=1.0, top_p=0.9, seed=seed
        )
        .choices[0]
        .text
        for seed in (7, 8)
        for client in clients
    ]

    assert len(set(answers[:3])) == len(set(answers[3:])) == 1
    assert answers[0] != answers[3]


def test_models_and_errors_have_openais_shape(clients: list[openai.OpenAI]) -> None:
    for client in clients:
        assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError, match="tiny"):
        clients[0].completions.create(model="another", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        clients[0].completions.create(model="tiny", prompt="x", temperature=9)


def test_the_seeds_metrics_are_there(cluster: LocalCluster) -> None:
    import urllib.request

    with urllib.request.urlopen(f"{cluster.nodes[0].url}/metrics", timeout=10) as answer:
        text = answer.read().decode()

    assert 'init_duration_seconds{phase="total"}' in text
    assert 'node_state{state="OPERATIONAL"} 1.0' in text
    assert "cluster_operational_nodes 3.0" in text
    assert "cluster_size 3.0" in text
    assert "model_bytes_downloaded_total" in text


def test_the_node_process_loads_no_torch(cluster: LocalCluster) -> None:
    for node in cluster.nodes:
        assert node.process is not None
        own = Path(f"/proc/{node.process.pid}/maps").read_text()
        engine = Path(f"/proc/{node.engine_pid()}/maps").read_text()

        assert "libtorch" not in own
        assert "libtorch" in engine
