"""Text in, ids out, text back: for the same files, what transformers gives."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from butterfly.demo_model import demo_model_directory
from butterfly_core.errors import RequestError
from butterfly_text.model import TextModel
from tests.support.text_models import SAMPLE, SPECIAL_TOKENS, TEMPLATES, TOKENIZERS, model_files

TOY = "the toy"
USER = {"role": "user", "content": "Who are you? 🙂 <|im_end|> é"}
CHATS: dict[str, list[dict[str, Any]]] = {
    "one question": [USER],
    "with system": [{"role": "system", "content": " Be kind.\n"}, USER],
    "three turns": [USER, {"role": "assistant", "content": "A toy."}, USER],
    "assistant last": [USER, {"role": "assistant", "content": "A ", "reasoning_content": "Hm\n"}],
    "reasoning by its other name": [USER, {"role": "assistant", "content": "A", "reasoning": "B"}],
    "nulls": [{**USER, "name": None}, {"role": "assistant", "content": None, "tool_calls": None}],
    "wrong order": [USER, USER],
    "no such role": [{"role": "skipped", "content": "x"}, USER],
    "empty": [{"role": "user", "content": ""}],
}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "<é> & 'x'"}}]


@pytest.fixture(scope="module", params=[TOY, *TOKENIZERS])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our model and transformers' tokenizer, made from the same files."""
    if request.param == TOY:
        folder = demo_model_directory()
        files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
        return TextModel(files), AutoTokenizer.from_pretrained(folder)
    return make_pair(tmp_path_factory.mktemp("model"), model_files(request.param, "llama3"))


def make_pair(folder: Path, files: Mapping[str, bytes]) -> tuple[TextModel, Any]:
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    return TextModel(files), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=TEMPLATES)
def chat_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    files = model_files("byte_level", request.param)
    return make_pair(tmp_path_factory.mktemp("chat"), files)


def our_chat(model: TextModel, chat: Any, **variables: Any) -> tuple[str, list[int]] | None:
    tools = variables.pop("tools", None)
    try:
        return (
            model.render_chat(chat, tools=tools, template_kwargs=variables),
            model.encode_chat(chat, tools=tools, template_kwargs=variables),
        )
    except RequestError:
        return None


def their_chat(tokenizer: Any, chat: Any, **variables: Any) -> tuple[str, list[int]] | None:
    given_all = {"add_generation_prompt": True, **variables}
    try:
        return (
            tokenizer.apply_chat_template(chat, tokenize=False, **given_all),
            tokenizer.apply_chat_template(chat, return_dict=False, **given_all),
        )
    except (TemplateError, TypeError):
        return None


@pytest.mark.parametrize("variables", [
    {}, {"add_generation_prompt": False}, {"enable_thinking": False}, {"tools": TOOLS},
    {"bos_token": "!"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_a_chat_becomes_the_same_prompt(chat_pair: Any, chat: Any, variables: Any) -> None:
    model, tokenizer = chat_pair

    ours = our_chat(model, chat, **variables)

    assert ours == their_chat(tokenizer, chat, **variables)


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)
def test_a_chat_becomes_the_same_prompt_with_any_tokenizer(pair: Any, chat: Any) -> None:
    model, tokenizer = pair

    assert our_chat(model, chat) == their_chat(tokenizer, chat)


def test_most_chats_are_rendered_at_all(chat_pair: Any) -> None:
    rendered = [name for name, chat in CHATS.items() if our_chat(chat_pair[0], chat)]

    assert len(rendered) >= 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60) | st.sampled_from(SAMPLE + SPECIAL_TOKENS))
def test_a_text_becomes_the_same_ids_and_comes_back_the_same(pair: Any, text: str) -> None:
    model, tokenizer = pair
    ids = model.encode(text)

    assert ids == tokenizer.encode(text)
    assert model.encode(text, add_special_tokens=False) == tokenizer.encode(
        text, add_special_tokens=False
    )
    for skip in (False, True):
        ours = model.decode(ids, skip_special_tokens=skip)
        assert ours == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_ids_become_the_same_text(pair: Any, data: st.DataObject) -> None:
    model, tokenizer = pair
    ids = data.draw(st.lists(st.integers(0, model.vocabulary_size - 1), max_size=40))
    detokenizer = model.detokenizer()

    text = "".join([*(detokenizer.push([token]) for token in ids), detokenizer.flush()])

    assert text == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
def test_the_config_puts_the_same_tokens_around_a_text(
    tmp_path: Path, bos: bool, eos: bool
) -> None:
    files = model_files("byte_fallback_bpe", add_bos_token=bos, add_eos_token=eos)
    model, tokenizer = make_pair(tmp_path, files)

    assert model.encode("hello") == tokenizer.encode("hello")


def test_templates_in_files_of_their_own_are_found_as_transformers_finds_them(
    tmp_path: Path,
) -> None:
    files = {
        **model_files(template="chatml"),
        "chat_template.jinja": b"default of {{ messages | length }}",
        "additional_chat_templates/tool_use.jinja": b"tools of {{ tools | length }}",
    }
    model, tokenizer = make_pair(tmp_path, files)

    for tools in (None, TOOLS):
        assert our_chat(model, [USER], tools=tools) == their_chat(tokenizer, [USER], tools=tools)
