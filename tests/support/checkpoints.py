"""Small random checkpoints in the layout of Llama, as safetensors files, without torch.

The bytes are random but for their exponents: they prove loading, not generating.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BITS = {"BF16": 16, "F16": 16, "F32": 32}
_TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True)
class Shape:
    """What kind of checkpoint to write; ``shards`` 1 gives one model.safetensors, no index."""

    layer_count: int = 4
    hidden_size: int = 64
    intermediate_size: int = 128
    vocab_size: int = 256
    heads: int = 4
    kv_heads: int = 2
    shards: int = 3
    tied: bool = False
    dtype: str = "BF16"
    seed: int = 1
    config: Mapping[str, Any] = field(default_factory=dict)


def safetensors_bytes(tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> bytes:
    """A safetensors file from name → (dtype, shape, bytes)."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        entries[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, position + len(data)],
        }
        position += len(data)
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + b"".join(d for _, _, d in tensors.values())


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Llama's tensors, in the order of a checkpoint."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    kv = hidden // shape.heads * shape.kv_heads
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab_size, hidden)}
    for layer in range(shape.layer_count):
        found |= {
            f"model.layers.{layer}.input_layernorm.weight": (hidden,),
            f"model.layers.{layer}.mlp.down_proj.weight": (hidden, inner),
            f"model.layers.{layer}.mlp.gate_proj.weight": (inner, hidden),
            f"model.layers.{layer}.mlp.up_proj.weight": (inner, hidden),
            f"model.layers.{layer}.post_attention_layernorm.weight": (hidden,),
            f"model.layers.{layer}.self_attn.k_proj.weight": (kv, hidden),
            f"model.layers.{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"model.layers.{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"model.layers.{layer}.self_attn.v_proj.weight": (kv, hidden),
        }
    found["model.norm.weight"] = (hidden,)
    if not shape.tied:
        found["lm_head.weight"] = (shape.vocab_size, hidden)
    return found


def config_of(shape: Shape) -> dict[str, Any]:
    """The config.json of such a checkpoint."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.layer_count,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": _TORCH[shape.dtype],
        **shape.config,
    }


def write_checkpoint(folder: Path, shape: Shape | None = None) -> dict[str, bytes]:
    """Write a checkpoint; returns each tensor's bytes."""
    wanted = shape or Shape()
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(wanted.seed)
    tensors = {
        name: (wanted.dtype, dims, _random_bytes(wanted.dtype, dims, chance))
        for name, dims in tensor_shapes(wanted).items()
    }
    (folder / "config.json").write_text(json.dumps(config_of(wanted)))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.7}))
    if wanted.shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    else:
        _write_shards(folder, tensors, wanted.shards)
    return {name: data for name, (_, _, data) in tensors.items()}


def _write_shards(
    folder: Path, tensors: Mapping[str, tuple[str, Sequence[int], bytes]], shards: int
) -> None:
    names = list(tensors)
    each = -(-len(names) // shards)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file_name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        own = names[number * each : (number + 1) * each]
        (folder / file_name).write_bytes(safetensors_bytes({name: tensors[name] for name in own}))
        weight_map |= dict.fromkeys(own, file_name)
    total = sum(len(data) for _, _, data in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _random_bytes(dtype: str, dims: Sequence[int], chance: random.Random) -> bytes:
    count = _BITS[dtype] // 8
    for size in dims:
        count *= size
    data = bytearray(chance.randbytes(count))
    # A sane exponent in each element's last byte, so that nobody meets NaN or infinity.
    step = _BITS[dtype] // 8
    data[step - 1 :: step] = bytes([0x3C]) * (count // step)
    return bytes(data)
