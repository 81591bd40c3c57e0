"""With the real tokenizer: tokens are bytes here, so characters come in pieces."""

import json
from collections.abc import AsyncIterator, Mapping

import aiohttp
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from butterfly.api.app import make_app
from butterfly.api.server import ApiServer
from butterfly_core.address import Address
from butterfly_core.generation import FinishReason, GenerationRequest, TokensEmitted
from butterfly_text.model import TextModel
from tests.support.api_fakes import FakeNode

WORDS = "Grüße, Schmetterling 🦋! 蝶も。"
END = "<end>"
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def byte_tokenizer() -> Mapping[str, bytes]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    config = {"eos_token": END, "chat_template": TEMPLATE}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "config.json": json.dumps({"max_position_embeddings": 512}).encode(),
    }


class Echo:
    """A cluster whose model says the words, one token (one byte) at a time."""

    def __init__(self) -> None:
        self._text = TextModel(byte_tokenizer())
        self.prompts: list[str] = []

    def text(self) -> TextModel:
        return self._text

    async def ready(self) -> None:
        """No other model takes over."""

    def weights(self) -> str:
        return "echo"

    def model_name(self) -> str:
        return "echo"

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TokensEmitted]:
        self.prompts.append(self._text.decode(request.prompt))
        for token_id in self._text.encode(WORDS):
            yield TokensEmitted(request.request_id, (token_id,))
        end = self._text.eos_token_ids[:1]
        yield TokensEmitted(request.request_id, end, FinishReason.STOP)


@pytest.fixture
async def echo() -> AsyncIterator[tuple[str, Echo]]:
    serving = Echo()
    server = ApiServer(
        make_app(FakeNode(), serving, lambda: b"", api_keys=frozenset()), Address("127.0.0.1", 0)
    )
    yield f"http://{await server.start()}", serving
    await server.close()


async def test_no_half_character_is_ever_streamed(echo: tuple[str, Echo]) -> None:
    url, serving = echo
    body = {"messages": [{"role": "user", "content": "Sprich!"}], "stream": True}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        blocks = (await response.text()).split("\n\n")

    chunks = [json.loads(block[6:]) for block in blocks if block and "[DONE]" not in block]
    texts = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(texts) == WORDS
    assert not any("\ufffd" in text for text in texts)
    assert serving.prompts == ["user: Sprich!\nassistant:"]


async def test_a_stop_string_of_several_bytes_ends_the_answer(echo: tuple[str, Echo]) -> None:
    url, _ = echo
    body = {"prompt": "Sprich!", "stop": " 🦋", "max_tokens": 100}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/completions", json=body) as response,
    ):
        answer = await response.json()

    assert answer["choices"][0]["text"] == "Grüße, Schmetterling"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(WORDS[: WORDS.index("!")].encode())


async def test_a_prompt_of_foreign_ids_is_refused(echo: tuple[str, Echo]) -> None:
    url, serving = echo
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/completions", json={"prompt": [1, 257]}) as response,
    ):
        told = (await response.json())["error"]["message"]

    assert response.status == 400
    assert "257" in told
    assert not serving.prompts
