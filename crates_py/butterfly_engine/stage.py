"""One machine's layers: takes a step and what the stage before made of it, hands on its own.

A stage remembers nothing of a request but the keys and values in its pools: which tokens,
positions and blocks belong together comes with every step.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from butterfly_core.errors import InvalidValue, ProtocolViolation
from butterfly_core.layers import LayerRange
from butterfly_engine.attention import KvPools, StepLayout, attend
from butterfly_engine.batch import StepBatch
from butterfly_engine.models.load import load
from butterfly_engine.models.splice import SplicedModel
from butterfly_engine.sampler import sample
from butterfly_engine.supported import dtype_name, kv_heads_and_size


class Stage:
    """Layers [start, stop) of a model on one device. One thread at a time may call ``step``."""

    def __init__(
        self,
        config: Mapping[str, Any],
        layers: LayerRange,
        tensors: Mapping[str, torch.Tensor],
        *,
        device: str = "cpu",
        dtype: str | None = None,
        kv_blocks: int,
        block_size: int = 16,
        threads: int | None = None,
    ) -> None:
        """``tensors`` are named as in the checkpoint; where type and device agree they are not
        copied, so their memory must live as long as the stage. ``threads`` is how many a CPU
        kernel uses (for the whole process; None leaves it). Raises ModelError.
        """
        if kv_blocks < 1 or block_size < 1:
            raise InvalidValue(f"{kv_blocks} KV blocks of {block_size}; both must be 1 or more")
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, dtype_name(config, dtype))
        self.layers = layers
        self.kv_blocks = kv_blocks
        self.block_size = block_size
        self._model = SplicedModel(config, layers, dtype=self.dtype)
        load(self._model, tensors, dtype=self.dtype, device=self.device)
        self.is_first = self._model.is_first
        self.is_last = self._model.is_last
        self.hidden_size = self._model.hidden_size
        self.vocab_size = int(self._model.config.vocab_size)
        self.eos_token_ids = _eos_token_ids(config)
        self.context_length = int(self._model.config.max_position_embeddings)
        heads = kv_heads_and_size(config)
        self._pools = KvPools(
            dict.fromkeys(range(layers.start, layers.stop), heads),
            blocks=kv_blocks,
            block_size=block_size,
            dtype=self.dtype,
            device=self.device,
        )
        self._layout: StepLayout | None = None
        self._model.bind_attention(self._attend)

    @property
    def kv_bytes(self) -> int:
        """What the KV pools take."""
        return self._pools.nbytes

    @property
    def weight_bytes(self) -> int:
        """What the loaded tensors take."""
        return sum(one.nbytes for one in self.parameters())

    def parameters(self) -> Iterator[torch.Tensor]:
        """The loaded tensors, each once."""
        yield from self._model.module.parameters()

    @torch.inference_mode()
    def step(self, batch: StepBatch, hidden: torch.Tensor | None = None) -> torch.Tensor:
        """Run one step: hidden states [tokens, hidden size], or on the last stage token ids.

        ``hidden`` [tokens, hidden size] is what the stage before returned; None on the first.
        Token ids are int64, one for each sequence that asked for one, in order. Raises
        ProtocolViolation when the step cannot be meant for this stage.
        """
        self._check(batch, hidden)
        if hidden is not None:
            hidden = hidden.to(device=self.device, dtype=self.dtype)
        self._layout = StepLayout(
            batch, block_size=self.block_size, dtype=self.dtype, device=self.device
        )
        rows: list[int] = []
        asked = []
        row = -1
        for sequence in batch.sequences:
            row += sequence.length
            if sequence.sampling is not None:
                rows.append(row)
                asked.append((sequence.sampling, sequence.stop))
        tokens = torch.tensor(batch.token_ids, device=self.device)
        kept = torch.tensor(rows, dtype=torch.int64, device=self.device)
        output = self._model.run(tokens, self._layout.positions, hidden, kept)
        if not self.is_last:
            return output
        if not asked:
            return kept
        return sample(output, [params for params, _ in asked], [position for _, position in asked])

    def _attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scale: float | None,
        window: int | None,
    ) -> torch.Tensor:
        assert self._layout is not None, "attention runs inside a step"
        pools = self._pools.layers[layer]
        return attend(query, key, value, pools, self._layout, scale=scale, window=window)

    def _check(self, batch: StepBatch, hidden: torch.Tensor | None) -> None:
        tokens = len(batch.token_ids)
        if (hidden is None) != self.is_first:
            raise ProtocolViolation(
                f"hidden states belong to all stages but the first ({self.layers})"
            )
        if hidden is not None and tuple(hidden.shape) != (tokens, self.hidden_size):
            expected = (tokens, self.hidden_size)
            raise ProtocolViolation(f"hidden states {tuple(hidden.shape)}; expected {expected}")
        if max(batch.token_ids) >= self.vocab_size:
            raise ProtocolViolation(f"token {max(batch.token_ids)} of {self.vocab_size}")
        for one in batch.sequences:
            if max(one.block_table, default=self.kv_blocks) >= self.kv_blocks:
                raise ProtocolViolation(f"sequence {one.sequence_id} names a block we do not have")
            if len(one.block_table) * self.block_size < one.stop:
                raise ProtocolViolation(f"sequence {one.sequence_id} lacks blocks for its tokens")


def _eos_token_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    """What config.json says ends an answer; generation_config.json may know more."""
    stored = config.get("eos_token_id")
    if stored is None:
        return ()
    return tuple(stored) if isinstance(stored, list | tuple) else (int(stored),)
