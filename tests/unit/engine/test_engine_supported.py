"""Models that no test compared with transformers are refused, with advice."""

from typing import Any

import pytest

from butterfly_core.errors import ModelError
from butterfly_core.layers import LayerRange
from butterfly_engine.supported import (
    SUPPORTED_ARCHITECTURES,
    check_supported,
    dtype_name,
    kv_cache_bytes,
    kv_heads_and_size,
)


@pytest.mark.parametrize("name", SUPPORTED_ARCHITECTURES)
def test_a_verified_architecture_is_taken(name: str) -> None:
    assert check_supported({"architectures": [name]}) == name


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "LlamaForCausalLM"),
        ({}, "none named"),
        (
            {
                "architectures": ["LlamaForCausalLM"],
                "quantization_config": {"quant_method": "gptq"},
            },
            "gptq",
        ),
        (
            {"architectures": ["LlamaForCausalLM"], "rope_scaling": {"rope_type": "dynamic"}},
            "dynamic",
        ),
        ({"architectures": ["LlamaForCausalLM"], "rope_scaling": {"type": "longrope"}}, "longrope"),
    ],
)
def test_anything_else_is_refused_with_the_reason(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        check_supported(config)


@pytest.mark.parametrize(
    ("config", "asked", "name"),
    [
        ({"dtype": "bfloat16"}, None, "bfloat16"),
        ({"torch_dtype": "float16"}, "auto", "float16"),
        ({"dtype": "bfloat16"}, "float32", "float32"),
        ({}, None, "float32"),
    ],
)
def test_the_type_is_as_asked_or_as_stored(
    config: dict[str, Any], asked: str | None, name: str
) -> None:
    assert dtype_name(config, asked) == name


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ModelError, match="float8"):
        dtype_name({"dtype": "float8_e4m3fn"})


def test_kv_bytes_follow_from_the_config() -> None:
    config = {"num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}

    assert kv_heads_and_size(config) == (8, 128)
    taken = kv_cache_bytes(config, LayerRange(3, 5), kv_blocks=10, block_size=16, dtype="bfloat16")
    assert taken == 2 * 8 * 128 * 2 * 160 * 2
