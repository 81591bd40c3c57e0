"""What torch calls the types that the safetensors format names."""

from collections.abc import Mapping

import torch

from butterfly_core.errors import ModelError
from butterfly_weights.tensors import TensorInfo

_TORCH_TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def torch_type(tensor: TensorInfo) -> torch.dtype:
    """Raises ModelError for one that this version does not run."""
    kind = _TORCH_TYPES.get(tensor.dtype)
    if kind is None:
        raise ModelError(
            f"tensor {tensor.name} in {tensor.shard} has the dtype {tensor.dtype}; this version "
            f"runs {', '.join(_TORCH_TYPES)}"
        )
    return kind
