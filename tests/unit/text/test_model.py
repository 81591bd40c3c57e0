import json
from collections.abc import Mapping
from typing import Any

import pytest

from butterfly_core.errors import ModelError, RequestError
from butterfly_text.model import TextModel
from tests.support.text_models import SPECIAL_TOKENS, byte_level, model_files

HELLO = [{"role": "user", "content": "hello"}]
CONFIG = "tokenizer_config.json"


def changed(files: Mapping[str, bytes], name: str, **fields: Any) -> dict[str, bytes]:
    """``files`` with fields of one JSON file set, or removed where None."""
    value = {**json.loads(files.get(name, b"{}")), **fields}
    kept = {key: inner for key, inner in value.items() if inner is not None}
    return {**files, name: json.dumps(kept).encode()}


def test_a_chat_has_the_special_tokens_of_its_template_and_no_others() -> None:
    files = model_files(template="mistral")
    model = TextModel(files)

    ids = model.encode_chat(HELLO)

    assert model.encode("x")[0] == SPECIAL_TOKENS.index("<s>")
    assert ids.count(SPECIAL_TOKENS.index("<s>")) == 1
    assert model.decode(ids, skip_special_tokens=False) == "<s>[INST] hello[/INST]"


def test_template_kwargs_reach_the_template_and_may_replace_special_tokens() -> None:
    model = TextModel(model_files())
    told = {"enable_thinking": False}

    assert model.render_chat(HELLO, template_kwargs=told).endswith("<think>\n\n</think>\n\n")
    no_prompt = model.render_chat(HELLO, template_kwargs={"add_generation_prompt": False})
    assert no_prompt == "<|im_start|>user\nhello<|im_end|>\n"
    mistral = TextModel(model_files(template="mistral"))
    assert mistral.render_chat(HELLO, template_kwargs={"bos_token": "!"}).startswith("![INST]")


@pytest.mark.parametrize("name", ["messages", "tools"])
def test_template_kwargs_do_not_replace_the_conversation(name: str) -> None:
    with pytest.raises(RequestError, match=name):
        TextModel(model_files()).encode_chat(HELLO, template_kwargs={name: []})


def test_an_empty_conversation_is_refused() -> None:
    with pytest.raises(RequestError, match="at least one message"):
        TextModel(model_files()).encode_chat([])


def test_a_model_without_chat_template_says_what_to_do() -> None:
    model = TextModel(model_files(template=None))

    assert not model.has_chat_template
    with pytest.raises(RequestError, match=r"/v1/completions.*chat_template\.jinja"):
        model.encode_chat(HELLO)


def test_a_template_in_a_file_of_its_own_wins() -> None:
    files = {**model_files(), "chat_template.jinja": b"file {{ messages[0].content }}"}

    assert TextModel(files).render_chat(HELLO) == "file hello"


@pytest.mark.parametrize("in_files", [False, True])
def test_the_template_for_tools_is_used_when_there_are_tools(in_files: bool) -> None:
    named = [{"name": n, "template": f"{n} template"} for n in ("default", "tool_use")]
    files = changed(model_files(template=None), CONFIG, chat_template=named)
    if in_files:
        files = {
            **model_files(template=None),
            "chat_template.jinja": b"default template",
            "additional_chat_templates/tool_use.jinja": b"tool_use template",
        }
    model = TextModel(files)

    assert model.render_chat(HELLO) == "default template"
    assert model.render_chat(HELLO, tools=[{"name": "f"}]) == "tool_use template"


def test_named_templates_without_a_default_are_named_in_the_refusal() -> None:
    files = changed(model_files(), CONFIG, chat_template=[{"name": "rag", "template": "documents"}])

    with pytest.raises(RequestError, match="rag"):
        TextModel(files).encode_chat(HELLO)


def test_a_missing_tokenizer_says_what_is_there_and_how_to_make_one() -> None:
    with pytest.raises(
        ModelError, match=r"no tokenizer\.json \(it has a\.model\).*save_pretrained"
    ):
        TextModel({"a.model": b""})


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("tokenizer.json", b"{", "tokenizer.json is not JSON"),
        ("tokenizer.json", b"[]", "not an object"),
        ("tokenizer.json", b'{"model": {"type": "New"}}', "tokenizers library"),
        (CONFIG, b"\xff", "tokenizer_config.json is not JSON"),
        (CONFIG, b'{"chat_template": 3}', "chat_template"),
        (CONFIG, b'{"chat_template": [{"name": "x"}]}', "name and a template"),
        ("config.json", b"3", "config.json holds a JSON int"),
        ("generation_config.json", b"[" * 100_000, "generation_config.json is not JSON"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
    ],
)
def test_a_malformed_file_is_named(name: str, data: bytes, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        TextModel({**model_files(), name: data})


@pytest.mark.parametrize(
    ("generation", "config", "found"),
    [
        (None, None, (2,)),
        (4, None, (4, 2)),
        ([4, 9], 2, (4, 9, 2)),
        (None, [9, 9, "no", -1, True], (9, 2)),
    ],
)
def test_every_file_may_name_ends(generation: Any, config: Any, found: tuple[int, ...]) -> None:
    files = changed(model_files(), "generation_config.json", eos_token_id=generation)
    files = changed(files, "config.json", eos_token_id=config)

    assert TextModel(files).eos_token_ids == found


def test_the_end_is_found_in_the_text_part_of_a_larger_config() -> None:
    inner = {"eos_token_id": 9, "max_position_embeddings": 64}
    model = TextModel(changed(model_files(), "config.json", text_config=inner))

    assert model.eos_token_ids == (9, 2)
    assert model.context_length == 64


def test_a_special_token_may_come_from_the_older_map_and_need_not_be_known() -> None:
    files = changed(model_files(), CONFIG, eos_token=None)
    older = changed(files, "special_tokens_map.json", eos_token={"content": "<|im_end|>"})
    unknown = changed(files, CONFIG, eos_token="<never trained>")

    assert TextModel(older).eos_token_ids == (SPECIAL_TOKENS.index("<|im_end|>"),)
    assert TextModel(unknown).eos_token_ids == ()


@pytest.mark.parametrize(
    ("config", "longest", "length"),
    [
        ({"max_position_embeddings": 2048}, None, 2048),
        ({"max_position_embeddings": 2048}, 512, 512),
        ({"n_positions": 1024}, 1e30, 1024),
        ({}, 4096, 4096),
        ({"max_position_embeddings": "many"}, None, None),
        ({}, None, None),
    ],
)
def test_the_context_is_as_long_as_model_and_tokenizer_allow(
    config: dict[str, Any], longest: float | None, length: int | None
) -> None:
    files = changed(model_files(), "config.json", **config)

    assert TextModel(changed(files, CONFIG, model_max_length=longest)).context_length == length


@pytest.mark.parametrize(
    ("generation", "defaults"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": True},
         {"temperature": 0.6, "top_p": 0.9, "top_k": 20}),
        ({"temperature": 0.6, "do_sample": False}, {"temperature": 0.0}),
        ({"temperature": None, "top_k": True, "top_p": "x"}, {}),
    ],
)  # fmt: skip
def test_defaults_are_what_the_models_authors_chose(
    generation: dict[str, Any], defaults: dict[str, float]
) -> None:
    files = changed(model_files(), "generation_config.json", **generation)

    assert TextModel(files).generation_defaults == defaults


def test_the_tokenizer_alone_decides_what_is_put_around_a_text() -> None:
    model = TextModel(changed(model_files(), CONFIG, add_bos_token=False, add_eos_token=True))

    assert model.encode("hello") == [1, *model.encode("hello", add_special_tokens=False)]


def test_what_a_tokenizer_says_about_training_batches_does_not_cut_a_prompt() -> None:
    data = json.loads(byte_level())
    data["truncation"] = {
        "max_length": 4, "stride": 0, "strategy": "LongestFirst", "direction": "Right"
    }  # fmt: skip
    data["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>",
    }  # fmt: skip
    model = TextModel({"tokenizer.json": json.dumps(data).encode()})

    assert model.decode(model.encode("hello there, how are you")) == "hello there, how are you"


@pytest.mark.parametrize("text", ["\ud800", "ok \udfff"])
def test_half_a_surrogate_pair_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="surrogate"):
        TextModel(model_files()).encode(text)


def test_a_text_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("butterfly_text.model.TEXT_CHARACTERS_MAX", 10)

    with pytest.raises(RequestError, match="10 are allowed"):
        TextModel(model_files()).encode("x" * 11)
