"""A checkpoint in the numbers that placing it needs. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from butterfly_core.errors import ModelError
from butterfly_core.layers import EMBED, HEAD, all_parts, layer_part
from butterfly_core.model import ModelSpec
from butterfly_weights.checkpoint import Checkpoint
from butterfly_weights.errors import shown
from butterfly_weights.small_files import CONFIG_NAME

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
_LAYERS_MAX = 10_000


def model_spec(checkpoint: Checkpoint, name: str) -> ModelSpec:
    """The model in numbers. Raises ModelError when config.json and the tensors do not agree."""
    config = _text_config(checkpoint.config)
    layer_count = layer_count_of(checkpoint.config)
    part_bytes = dict.fromkeys(all_parts(layer_count), 0)
    for tensor in checkpoint.tensors:
        if tensor.part in part_bytes:
            part_bytes[tensor.part] += tensor.nbytes
    _refuse_missing_parts(part_bytes, layer_count)
    dtype = _dtype(config, checkpoint)
    manifest = checkpoint.manifest
    return ModelSpec(
        name=name,
        architecture=_architecture(checkpoint.config),
        layer_count=layer_count,
        hidden_size=_count(config, "hidden_size", "n_embd", "d_model"),
        vocab_size=_count(config, "vocab_size"),
        context_length=_count(config, "max_position_embeddings", "n_positions", "n_ctx"),
        dtype=dtype,
        tied=_tied(config, part_bytes[HEAD]),
        kv_bytes_per_token=_kv_bytes(config, dtype),
        part_bytes=part_bytes,
        revision=checkpoint.revision,
        manifest_root=manifest.root if manifest else None,
    )


def layer_count_of(config: Mapping[str, Any]) -> int:
    """Decoder layers by config.json. Raises ModelError."""
    found = _count(_text_config(config), "num_hidden_layers", "n_layer", "num_layers")
    if found > _LAYERS_MAX:
        raise ModelError(f"{CONFIG_NAME}: {found} layers; at most {_LAYERS_MAX} are believed")
    return found


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Models that also see or hear keep the language model's numbers one level down."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def _count(config: Mapping[str, Any], *keys: str) -> int:
    for key in keys:
        value = config.get(key)
        if value is not None:
            if type(value) is not int or not 0 < value < 1 << 40:
                raise ModelError(f"{CONFIG_NAME}: {key} is {shown(value)}, not a positive number")
            return value
    raise ModelError(f"{CONFIG_NAME} lacks {' or '.join(keys)}")


def _architecture(config: Mapping[str, Any]) -> str:
    listed = config.get("architectures")
    if isinstance(listed, list) and listed and isinstance(listed[0], str):
        return listed[0]
    raise ModelError(f"{CONFIG_NAME} lacks architectures, as ['LlamaForCausalLM']")


def _dtype(config: Mapping[str, Any], checkpoint: Checkpoint) -> str:
    """As config.json says, else that of most bytes."""
    said = config.get("dtype", config.get("torch_dtype"))
    if isinstance(said, str) and said.removeprefix("torch.") in _DTYPE_BYTES:
        return said.removeprefix("torch.")
    weights: Counter[str] = Counter()
    for tensor in checkpoint.tensors:
        weights[_DTYPES.get(tensor.dtype, "bfloat16")] += tensor.nbytes
    return weights.most_common(1)[0][0]


def _tied(config: Mapping[str, Any], head_bytes: int) -> bool:
    said = config.get("tie_word_embeddings")
    if said is False and not head_bytes:
        raise ModelError(
            f"{CONFIG_NAME} says tie_word_embeddings = false, but the checkpoint has no output head"
        )
    return bool(said) if said is not None else not head_bytes


def _kv_bytes(config: Mapping[str, Any], dtype: str) -> int:
    """Keys and values of one token in one layer."""
    heads = _count(config, "num_attention_heads", "n_head")
    kv_heads = _count(config, "num_key_value_heads", "num_attention_heads", "n_head")
    hidden = _count(config, "hidden_size", "n_embd", "d_model")
    head_size = config.get("head_dim") or hidden // heads
    if type(head_size) is not int or head_size < 1:
        raise ModelError(f"{CONFIG_NAME}: head_dim is {shown(head_size)}")
    return 2 * kv_heads * head_size * _DTYPE_BYTES[dtype]


def _refuse_missing_parts(part_bytes: Mapping[str, int], layer_count: int) -> None:
    missing = [layer_part(i) for i in range(layer_count) if not part_bytes[layer_part(i)]]
    if not part_bytes[EMBED]:
        missing.insert(0, EMBED)
    if missing:
        raise ModelError(
            f"{CONFIG_NAME} says {layer_count} layers, but the checkpoint has no tensors of "
            f"{', '.join(missing[:5])}"
        )
