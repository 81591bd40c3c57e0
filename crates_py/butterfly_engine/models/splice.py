"""Some layers of any transformers causal LM, run by the model's own forward.

The whole model is built without memory (on the ``meta`` device). Layers before ours become
`Skip` at the same index, those after ours are cut off; the received hidden state is put in
front of our first layer by a hook, and what our last layer returns is caught by another. What
the model does before its layers (scaling, position embeddings) then runs on nothing and is
thrown away, so no code is needed per family. Attention goes to a function that the stage binds.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AttentionInterface

from butterfly_core.errors import ModelError
from butterfly_core.layers import LayerRange
from butterfly_engine.supported import check_supported

_ATTENTION = "butterfly"
_CONFIG_ERRORS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    ZeroDivisionError,
    AssertionError,
    StrictDataclassError,
)
_LAYER_LISTS = ("layers", "h", "blocks", "decoder_layers", "block")


class Attention(Protocol):
    """What the stage binds to the layers; all tensors are [tokens, heads, head size]."""

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor: ...


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface, [1, heads, tokens, size], handed on to the stage."""
    for name in ("softcap", "s_aux"):
        if others.get(name) is not None:
            raise ModelError(f"attention with {name} is not supported")
    attend: Attention = module.__dict__["butterfly_attention"]
    output = attend(
        module.__dict__["layer_idx"],
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=scaling,
        window=sliding_window,
    )
    return output[None], None


AttentionInterface.register(_ATTENTION, _attention)


class Skip(nn.Module):
    """Stands where a layer of another stage would: returns its first argument."""

    def __init__(self, replaced: nn.Module | None = None) -> None:
        super().__init__()
        # Some models read plain attributes (attention_type) of each layer in their loop.
        plain = vars(replaced).items() if replaced is not None else ()
        for name, value in plain:
            if isinstance(value, str | int | float) and name not in self.__dict__:
                setattr(self, name, value)

    def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden


class NoEmbedding(nn.Module):
    """Stands where the embedding would, on a stage that receives hidden states: all zero."""

    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.width = width
        self.dtype = dtype

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        zero = torch.zeros((), dtype=self.dtype, device=token_ids.device)
        return zero.expand(*token_ids.shape, self.width)


class SplicedModel:
    """A stage's part of a model; not thread-safe. ``module`` holds what must be loaded."""

    def __init__(
        self, config: Mapping[str, Any], layers: LayerRange, *, dtype: torch.dtype
    ) -> None:
        """Raises ModelError when the config is not one we support or makes no model."""
        self.config, self.module = _build_empty(config)
        self.layer_count = int(self.config.num_hidden_layers)
        if layers.stop > self.layer_count:
            raise ModelError(f"layers {layers} of a model that has {self.layer_count}")
        self.layers = layers
        self.is_first = layers.start == 0
        self.is_last = layers.stop == self.layer_count
        self.tied = bool(self.config.tie_word_embeddings)
        self.hidden_size = int(self.config.hidden_size)
        self._received: torch.Tensor | None = None
        self._sent: torch.Tensor | None = None
        self._cut(dtype)

    def bind_attention(self, attention: Attention) -> None:
        """Let our layers' attention call this."""
        for module in self.module.modules():
            if "layer_idx" in module.__dict__:
                module.__dict__["butterfly_attention"] = attention

    def run(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        hidden: torch.Tensor | None,
        rows_kept: torch.Tensor,
    ) -> torch.Tensor:
        """One pass over flat tokens [T]: hidden states [T, width], or, on the last stage, logits.

        ``hidden`` [T, width] comes from the stage before; logits are of ``rows_kept`` alone.
        """
        self._received = None if hidden is None else hidden[None]
        try:
            output = self.module(
                input_ids=token_ids[None],
                position_ids=positions[None],
                use_cache=False,
                logits_to_keep=rows_kept,
            )
            sent = output.logits if self.is_last else self._sent
            if sent is None:
                raise ModelError(f"layer {self.layers.stop - 1} did not run")
            result: torch.Tensor = sent[0]
            return result
        finally:
            self._received = self._sent = None

    def _cut(self, dtype: torch.dtype) -> None:
        path, layers = _find_layers(self.module, self.layer_count)
        for index in range(self.layers.start):
            layers[index] = Skip(layers[index])
        del layers[self.layers.stop :]
        if not self.is_first:
            layers[self.layers.start].register_forward_pre_hook(self._inject, with_kwargs=True)
            if not (self.is_last and self.tied):
                embedding = self.module.get_input_embeddings()
                name = _name_of(self.module, embedding)
                self.module.set_submodule(name, NoEmbedding(self.hidden_size, dtype))
        if not self.is_last:
            layers[-1].register_forward_hook(self._catch)
            self._drop_what_follows_the_layers(path)

    def _drop_what_follows_the_layers(self, layers_path: str) -> None:
        head = self.module.get_output_embeddings()
        self.module.set_submodule(_name_of(self.module, head), Skip())
        parent = self.module.get_submodule(layers_path.rpartition(".")[0])
        kept = (self.module.get_input_embeddings(), parent.get_submodule(_last(layers_path)))
        for name, child in list(parent.named_children()):
            if child not in kept and any(True for _ in child.parameters()):
                parent.set_submodule(name, Skip())

    def _inject(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (self._received, *args[1:]), kwargs
        return (), {**kwargs, next(iter(kwargs)): self._received}

    def _catch(self, _: nn.Module, __: object, output: Any) -> None:
        self._sent = output[0] if isinstance(output, tuple) else output


def _build_empty(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """The config object and the whole model on meta."""
    model_class: Any = getattr(transformers, check_supported(config))
    make_config: Callable[..., Any] = model_class.config_class.from_dict
    try:
        made = make_config(dict(config))
        made._attn_implementation = _ATTENTION
        with torch.device("meta"):
            model = model_class(made)
    except _CONFIG_ERRORS as error:
        raise ModelError(f"config.json makes no {model_class.__name__}: {error}") from error
    return made, model.eval()


def _find_layers(model: nn.Module, count: int) -> tuple[str, nn.ModuleList]:
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and _last(name) in _LAYER_LISTS
    ]
    if not found:
        raise ModelError(f"{type(model).__name__} has no list of {count} layers")
    return min(found, key=lambda pair: pair[0].count("."))


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _name_of(model: nn.Module, wanted: nn.Module) -> str:
    names = (str(name) for name, module in model.named_modules() if module is wanted)
    return next(names)
