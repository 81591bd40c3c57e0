"""What the small files of a checkpoint say about text: special tokens, templates, ends, defaults.

Pure: bytes in, values out. Names of files and fields are those of Hugging Face checkpoints.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from butterfly_core.errors import ModelError

SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
CONTEXT_LENGTH_NAMES = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "seq_length",
    "max_seq_len",
)
FILE_BYTES_MAX = 256 * 1024 * 1024
NO_CONTEXT_LENGTH = 10**9  # tokenizers write 1e30 where they know no length
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_FOLDER = "additional_chat_templates/"


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The small files of a checkpoint, parsed; a file that is absent is an empty mapping."""

    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    special_tokens: Mapping[str, str]
    templates: Mapping[str, str]


def read_model_files(files: Mapping[str, bytes]) -> ModelFiles:
    """Parse what is there. Raises ModelError naming the file that is malformed."""
    tokenizer_config = parse_json_object(files, "tokenizer_config.json")
    return ModelFiles(
        config=parse_json_object(files, "config.json"),
        generation_config=parse_json_object(files, "generation_config.json"),
        tokenizer_config=tokenizer_config,
        special_tokens=_special_tokens(
            parse_json_object(files, "special_tokens_map.json"), tokenizer_config
        ),
        templates=_templates(files, tokenizer_config),
    )


def parse_json_object(files: Mapping[str, bytes], name: str) -> Mapping[str, Any]:
    """The object in the file ``name``, or an empty one where there is no such file."""
    data = files.get(name)
    if data is None:
        return {}
    if len(data) > FILE_BYTES_MAX:
        raise ModelError(f"{name} has {len(data)} bytes; {FILE_BYTES_MAX} are allowed")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{name} holds a JSON {type(value).__name__}, not an object")
    return value


def _text_of(token: object) -> str | None:
    """A special token is written as a string, or as an object with its content."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _special_tokens(*sources: Mapping[str, Any]) -> Mapping[str, str]:
    """Names to tokens; a later source wins."""
    return {
        name: text
        for source in sources
        for name in SPECIAL_TOKEN_NAMES
        if (text := _text_of(source.get(name))) is not None
    }


def _templates(
    files: Mapping[str, bytes], tokenizer_config: Mapping[str, Any]
) -> Mapping[str, str]:
    """Names to templates: those in files of their own, else those in tokenizer_config.json."""
    templates: dict[str, str] = {}
    for name, data in files.items():
        if name == TEMPLATE_FILE:
            templates["default"] = _decode(name, data)
        elif name.startswith(TEMPLATE_FOLDER) and name.endswith(".jinja"):
            short = name.removeprefix(TEMPLATE_FOLDER).removesuffix(".jinja")
            templates[short] = _decode(name, data)
    return templates or _templates_of_entry(tokenizer_config.get("chat_template"))


def _templates_of_entry(entry: object) -> Mapping[str, str]:
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": entry}
    if isinstance(entry, list):
        return dict(map(_named_template, entry))
    raise ModelError(
        "chat_template in tokenizer_config.json must be a text or a list of named texts, "
        f"not {type(entry).__name__}"
    )


def _named_template(entry: object) -> tuple[str, str]:
    if isinstance(entry, Mapping):
        name, text = entry.get("name"), entry.get("template")
        if isinstance(name, str) and isinstance(text, str):
            return name, text
    raise ModelError(
        "each entry of chat_template in tokenizer_config.json needs a name and a template"
    )


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{name} is not UTF-8 ({error}); fetch the file again") from error


def named_eos_ids(files: ModelFiles) -> tuple[int, ...]:
    """The ids that the two configs call ends, without repetition, in their order."""
    ids: list[int] = []
    for source in (files.generation_config, files.config, files.config.get("text_config") or {}):
        given = source.get("eos_token_id")
        ids += [
            token_id
            for token_id in (given if isinstance(given, list) else [given])
            if type(token_id) is int and token_id >= 0
        ]
    return tuple(dict.fromkeys(ids))


def context_length(files: ModelFiles) -> int | None:
    """Positions the model was made for, or fewer if the tokenizer says so; None if unknown."""
    inner = files.config.get("text_config") or {}
    lengths = [
        source.get(name) for source in (files.config, inner) for name in CONTEXT_LENGTH_NAMES
    ]
    known = [length for length in lengths if isinstance(length, int) and length > 0][:1]
    longest = files.tokenizer_config.get("model_max_length")
    if isinstance(longest, (int, float)) and 0 < longest < NO_CONTEXT_LENGTH:
        known.append(int(longest))
    return min(known, default=None)


def generation_defaults(files: ModelFiles) -> Mapping[str, float | int]:
    """``temperature``, ``top_p`` and ``top_k`` where the model's authors chose them.

    ``do_sample: false`` is written as temperature 0, which is greedy here.
    """
    source = files.generation_config
    chosen = {
        name: value
        for name in ("temperature", "top_p", "top_k")
        if isinstance(value := source.get(name), (int, float)) and not isinstance(value, bool)
    }
    if source.get("do_sample") is False:
        chosen["temperature"] = 0.0
    return chosen
