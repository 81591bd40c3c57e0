"""The toy that ships with the package: small, in several shards, and it answers with words."""

import json
from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from butterfly.demo_model import demo_model_directory
from butterfly_core.errors import RequestError
from butterfly_text.model import TextModel

FOLDER = demo_model_directory()


@cache
def text_model() -> TextModel:
    return TextModel({path.name: path.read_bytes() for path in FOLDER.glob("*.json")})


@cache
def network() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER)


def answer(messages: list[dict[str, Any]], tokens_max: int = 60) -> tuple[str, bool]:
    """The greedy answer, and whether the model ended it by itself."""
    text = text_model()
    prompt = torch.tensor([text.encode_chat(messages)])
    whole = network().generate(prompt, max_new_tokens=tokens_max, do_sample=False)
    ids = whole[0, prompt.shape[1] :].tolist()
    return text.decode(ids), ids[-1] in text.eos_token_ids


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_it_is_small_and_comes_in_several_shards() -> None:
    files = list(FOLDER.iterdir())

    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert sum(path.suffix == ".safetensors" for path in files) >= 3


def test_it_has_layers_for_three_nodes() -> None:
    config = json.loads((FOLDER / "config.json").read_bytes())

    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_hidden_layers"] >= 6


def test_it_is_greedy_unless_told_otherwise_and_knows_its_context() -> None:
    assert text_model().generation_defaults == {"temperature": 0.0}
    assert text_model().context_length == 512
    assert len(text_model().eos_token_ids) == 1


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("Who are you?", "I am the toy model of Butterfly."),
        ("What does len do?", "number of items"),
        ("What does os.path.join do?", "Join two or more pathname components"),
        ("What is the tempfile module for?", "Temporary files"),
    ],
)
def test_it_answers_with_words_and_ends_by_itself(question: str, words: str) -> None:
    said, ended = answer([user(question)])

    assert words in said
    assert ended


def test_it_keeps_answering_in_a_conversation() -> None:
    first, _ = answer([user("Hello!")])
    said, ended = answer(
        [user("Hello!"), {"role": "assistant", "content": first}, user("What does len do?")]
    )

    assert "number of items" in said
    assert ended


def test_it_reads_a_text_given_in_parts_as_openai_clients_send_it() -> None:
    parts = [{"type": "text", "text": "What does len do?"}]

    assert text_model().encode_chat([user(parts)]) == text_model().encode_chat(
        [user("What does len do?")]
    )


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "tool", "content": "x"}, "not tool"),
        (user([{"type": "image_url", "image_url": "x"}]), "not image_url"),
    ],
)
def test_it_says_what_it_cannot_read(message: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        text_model().encode_chat([message])
