"""Every family, tied and untied, over one to three stages: the tokens of one whole model.

In CI each family, each number of stages, tied and untied, but not every combination: those are
`slow` here, and all are tried in tests/integration/engine without processes. The weights come
from real S3-compatible servers, alternating between the two.
"""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tests.support.local_cluster import local_cluster
from tests.support.s3 import S3Server, credentials_environment, moto_s3, rclone_s3
from tests.support.tiny_models import make_tiny_model, reference_greedy, reference_model

pytestmark = pytest.mark.e2e

FAMILIES = ("llama", "qwen3", "mistral")
IN_CI = {("llama", False, 1), ("llama", True, 3), ("qwen3", False, 2), ("mistral", True, 2)}
CASES = [
    pytest.param(
        *case,
        id=f"{case[0]}-{'tied' if case[1] else 'untied'}-{case[2]}",
        marks=[] if case in IN_CI else pytest.mark.slow,
    )
    for case in product(FAMILIES, (False, True), (1, 2, 3))
]
PROMPT = [256, *b"Once upon a time"]
TOKENS = 16


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, S3Server]]:
    with rclone_s3(tmp_path_factory.mktemp("buckets")) as rclone, moto_s3() as moto:
        yield rclone, moto


@pytest.mark.parametrize(("family", "tied", "stages"), CASES)
def test_the_tokens_are_those_of_the_whole_model(
    servers: tuple[S3Server, S3Server], tmp_path: Path, family: str, tied: bool, stages: int
) -> None:
    window = 8 if family == "mistral" else None
    tiny = make_tiny_model(
        tmp_path / "model",
        family,
        layers=4,
        tied=tied,
        seed=stages,
        sliding_window=window,
        tokenizer=True,
    )
    server = servers[stages % 2]
    name = f"{family}-{tied}-{stages}".lower()
    server.upload(tiny.folder, f"models/{name}")
    model = {
        "source_type": "s3",
        "source_path": f"s3://models/{name}",
        "endpoint_url": server.url,
        "name": name,
    }

    environments = [credentials_environment()] * stages
    with local_cluster(
        tmp_path / "cluster", model, nodes=stages, environments=environments
    ) as cluster:
        cluster.wait_until_operational()
        held = [node.status()["layers"] for node in cluster.nodes]
        asked = {
            "model": name,
            "prompt": PROMPT,
            "max_tokens": TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        code, answer = cluster.nodes[-1].post("/v1/completions", asked)

    assert code == 200, answer
    expected = reference_greedy(reference_model(tiny), PROMPT, TOKENS)
    tokenizer = Tokenizer.from_file(str(tiny.folder / "tokenizer.json"))
    assert answer["choices"][0]["text"] == tokenizer.decode(expected)
    assert None not in held
    assert len(set(held)) == stages
