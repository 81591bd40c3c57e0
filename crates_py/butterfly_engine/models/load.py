"""Put tensors that are already in memory into a module built without memory; no copy if it can be.

A tensor of the right type on the right device becomes the parameter itself: its bytes stay
where the weights crate proved them.
"""

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn

from butterfly_core.errors import ModelError
from butterfly_engine.models.splice import SplicedModel

_NAMED_AT_MOST = 8
# Older checkpoints store these; they follow from the config.
_IGNORED = ("*rotary_emb.inv_freq", "*.masked_bias")


def load(
    model: SplicedModel,
    tensors: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Fill the model. Raises ModelError naming tensors that miss, are too many or misshapen."""
    module: nn.Module = model.module
    tied = _tied_names(model)
    wanted = {
        name: parameter
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if name not in tied
    }
    unknown = [name for name in tensors if name not in wanted and not _ignored(name, tied)]
    missing = [name for name in wanted if name not in tensors]
    if unknown or missing:
        raise ModelError(_mismatch(model, missing, unknown))
    for name, empty in wanted.items():
        tensor = _fitting(name, tensors[name], empty.shape)
        placed = tensor.to(device=device, dtype=dtype)
        _put(module, name, nn.Parameter(placed, requires_grad=False))
    for name, source in tied.items():
        if source in wanted:
            _put(module, name, module.get_parameter(source))
    _rebuild_buffers(module, device)
    _check_nothing_is_empty(module)


def _tied_names(model: SplicedModel) -> Mapping[str, str]:
    """Parameter names that share another's tensor, and whose."""
    if not model.tied:
        return {}
    pairs: Any = model.module._tied_weights_keys or {}
    return dict(pairs)


def _ignored(name: str, tied: Mapping[str, str]) -> bool:
    return name in tied or any(fnmatch(name, pattern) for pattern in _IGNORED)


def _mismatch(model: SplicedModel, missing: list[str], unknown: list[str]) -> str:
    told = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:_NAMED_AT_MOST])}"
        + (", …)" if len(names) > _NAMED_AT_MOST else ")")
        for what, names in (("missing", missing), ("unknown", unknown))
        if names
    ]
    kind = type(model.module).__name__
    return (
        f"tensors for layers {model.layers} of {kind}: {'; '.join(told)}. Is the checkpoint whole?"
    )


def _fitting(name: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if tensor.shape != shape:
        seen, expected = tuple(tensor.shape), tuple(shape)
        raise ModelError(f"tensor {name} has shape {seen}; config.json makes it {expected}")
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise ModelError(f"tensor {name} is of type {tensor.dtype}; quantised ones are refused")
    return tensor


def _put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    module.get_submodule(path)._parameters[leaf] = parameter


def _rebuild_buffers(module: nn.Module, device: torch.device) -> None:
    """Buffers that no checkpoint stores (rotary frequencies) are made again, with memory."""
    for path, owner in list(module.named_modules()):
        if not any(buffer.is_meta for buffer in owner.buffers(recurse=False)):
            continue
        config = owner.__dict__.get("config")
        if config is None:
            raise ModelError(f"{path} ({type(owner).__name__}) has buffers that nothing can remake")
        made: Any = type(owner)
        module.set_submodule(path, made(config=config).to(device))


def _check_nothing_is_empty(module: nn.Module) -> None:
    empty = [name for name, one in module.named_parameters(remove_duplicate=False) if one.is_meta]
    empty += [name for name, one in module.named_buffers() if one.is_meta]
    if empty:
        raise ModelError(f"tensors were never filled: {', '.join(empty[:_NAMED_AT_MOST])}")
