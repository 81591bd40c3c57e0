"""Tiny random checkpoints of each supported family, with a tokenizer, and what they must answer.

Random weights are scaled up from transformers' default: with that, every token looks alike and
a wrong cache would go unseen.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.utils import logging

logging.disable_progress_bar()

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "granite", "olmo2", "phi3", "smollm3")
BOS = "<s>"
EOS = "</s>"
BOS_ID = 256
EOS_ID = 257
VOCAB_SIZE = 300
_HEAD_SIZE_FOLLOWS = ("qwen2", "granite", "olmo2", "phi3", "smollm3")
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_CLASSES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "granite": "Granite",
    "olmo2": "Olmo2",
    "phi3": "Phi3",
    "smollm3": "SmolLM3",
}
# What sets a family apart must be in its tiny model, or a test of it proves nothing.
_OWN_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "attention_multiplier": 0.2,
        "logits_scaling": 2.0,
    },
    "phi3": {"pad_token_id": 0},
    "smollm3": {"no_rope_layer_interval": 2, "pad_token_id": 0},
}


@dataclass(frozen=True, slots=True)
class TinyModel:
    """Where a tiny checkpoint lies and what it was made from."""

    folder: Path
    family: str
    layer_count: int
    tied: bool
    config: Mapping[str, Any]


def make_tiny_model(
    folder: Path,
    family: str = "llama",
    *,
    layers: int = 4,
    tied: bool = False,
    seed: int = 0,
    dtype: str = "float32",
    sliding_window: int | None = None,
    context_length: int = 512,
    shard_bytes_max: int = 100_000,
    tokenizer: bool = False,
    **overrides: Any,
) -> TinyModel:
    """Write config.json and safetensors shards (and with ``tokenizer`` its files) to a folder."""
    name = _CLASSES[family]
    window: dict[str, Any] = {} if sliding_window is None else {"sliding_window": sliding_window}
    if family.startswith("qwen") and sliding_window is not None:
        window |= {"use_sliding_window": True, "max_window_layers": layers // 2}
    if family == "mistral" and sliding_window is None:
        window = {"sliding_window": None}
    settings: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": context_length,
        "tie_word_embeddings": tied,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "initializer_range": 0.2,
        **({"head_dim": 16} if family not in _HEAD_SIZE_FOLLOWS else {}),
        **window,
        **_OWN_SETTINGS.get(family, {}),
        **overrides,
    }
    config = getattr(transformers, f"{name}Config")(**settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard_bytes_max)
    if tokenizer:
        write_tokenizer(folder)
    written = json.loads((folder / "config.json").read_text())
    return TinyModel(folder, family, layers, tied, written)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer (ids 0-255 are bytes) with a chat template, as files."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={one: i for i, one in enumerate(alphabet)}, merges=[]))
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def reference_model(tiny: TinyModel) -> Any:
    """The whole model as transformers loads it, on the CPU."""
    model_class = getattr(transformers, f"{_CLASSES[tiny.family]}ForCausalLM")
    return model_class.from_pretrained(tiny.folder).eval()


def reference_greedy(model: Any, prompt: Sequence[int], tokens: int) -> list[int]:
    """What transformers' generate answers, greedily, to one prompt; eos does not end it."""
    ids = torch.tensor([list(prompt)])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    answer: list[int] = output[0, len(prompt) :].tolist()
    return answer


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by name."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        found |= load_file(shard)
    return found
