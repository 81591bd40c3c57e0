"""Which models this engine runs: those whose tokens a test compared with transformers' own.

A model of another kind would not fail, it would answer wrongly: so everything else is refused.
"""

from collections.abc import Mapping
from typing import Any

from butterfly_core.errors import ModelError
from butterfly_core.layers import LayerRange

SUPPORTED_ARCHITECTURES = (
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Olmo2ForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "SmolLM3ForCausalLM",
)

DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

# Their frequencies depend on the longest sequence of a batch, so answers would, too.
_ROTARY_REFUSED = ("dynamic", "longrope")


def check_supported(config: Mapping[str, Any]) -> str:
    """The architecture's name. Raises ModelError that says what is supported."""
    architectures = config.get("architectures") or ()
    name = str(architectures[0]) if architectures else "none named"
    if name not in SUPPORTED_ARCHITECTURES:
        raise ModelError(
            f"config.json: architecture {name} is not supported; supported are "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    if method := config.get("quantization_config"):
        kind = method.get("quant_method", "unknown") if isinstance(method, Mapping) else method
        raise ModelError(
            f"config.json: quantised weights ({kind}) are not supported; use the checkpoint in "
            f"{', '.join(DTYPE_BYTES)}"
        )
    rotary = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rotary.get("rope_type", rotary.get("type", "default"))
    if kind in _ROTARY_REFUSED:
        raise ModelError(f"config.json: rotary embeddings of type {kind!r} are not supported")
    return name


def dtype_name(config: Mapping[str, Any], asked: str | None = None) -> str:
    """The name of the type to compute in: as asked, else as the checkpoint says, else float32.

    Raises ModelError for a type the engine does not compute in.
    """
    own = config.get("dtype") or config.get("torch_dtype") or "float32"
    name = str(own if asked in (None, "auto") else asked).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise ModelError(f"dtype {name!r} is not supported; choose one of {', '.join(DTYPE_BYTES)}")
    return name


def kv_heads_and_size(config: Mapping[str, Any]) -> tuple[int, int]:
    """KV heads of one layer, and the size of a head."""
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    return kv_heads, size


def kv_cache_bytes(
    config: Mapping[str, Any],
    layers: LayerRange,
    *,
    kv_blocks: int,
    block_size: int,
    dtype: str | None = None,
) -> int:
    """What the KV pools of a stage take."""
    kv_heads, size = kv_heads_and_size(config)
    item_bytes = DTYPE_BYTES[dtype_name(config, dtype)]
    return 2 * kv_heads * size * item_bytes * kv_blocks * block_size * len(layers)
