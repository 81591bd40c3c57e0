"""Attention over a paged KV cache, for steps that mix prompt chunks and single tokens.

Every layer has one pool of keys and one of values, [blocks, block_size, KV heads, head size].
Single tokens (decode) are attended together: blocks are gathered, the query heads that share a
KV head become rows of one small matrix product. Sequences of very different lengths go to
separate buckets, and a bucket's gathered bytes are bounded. Prompt chunks go one by one.

The two ways round differently, and so may different padding. So the tokens of an answer that
are computed anew, many in one step, are attended as single tokens without padding, as they were
when each was alone in its step: what follows them is then what would have followed.

What depends on positions alone is computed once per step and shared by all its layers (`View`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from butterfly_engine.batch import SequenceStep, StepBatch

GATHER_BYTES_MAX = 64 << 20


class KvPools:
    """Keys and values of some layers. Zeroed: what is masked is multiplied by 0, never NaN."""

    def __init__(
        self,
        layer_heads: Mapping[int, tuple[int, int]],
        *,
        blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """``layer_heads``: for each layer its KV heads and their size."""
        self.block_size = block_size
        self.layers = {
            layer: (
                torch.zeros(blocks, block_size, heads, size, dtype=dtype, device=device),
                torch.zeros(blocks, block_size, heads, size, dtype=dtype, device=device),
            )
            for layer, (heads, size) in layer_heads.items()
        }

    @property
    def nbytes(self) -> int:
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers.values())


@dataclass(frozen=True, slots=True)
class _Chunk:
    """A prompt chunk: its rows of the step, its blocks, and which keys each token sees."""

    begin: int
    end: int
    blocks: torch.Tensor
    keys_count: int
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Single tokens: rows [B], blocks [B * n], additive mask [B, 1, 1, n * block_size]."""

    rows: torch.Tensor
    blocks: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, slots=True)
class View:
    """What each token of a step sees, for one sliding window (or none)."""

    chunks: tuple[_Chunk, ...]
    buckets: tuple[_Bucket, ...]


class StepLayout:
    """One step's positions and slots, and its views by window; made once, used by all layers."""

    def __init__(
        self, batch: StepBatch, *, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._batch = batch
        self._block_size = block_size
        self._dtype = dtype
        self._device = device
        self._views: dict[int | None, View] = {}
        sequences = batch.sequences
        widest = max(len(one.block_table) for one in sequences)
        self._tables = torch.tensor(
            [(*one.block_table, *(0,) * (widest - len(one.block_table))) for one in sequences]
        )
        lengths = torch.tensor([one.length for one in sequences])
        starts = torch.tensor([one.start for one in sequences])
        owner = torch.arange(len(sequences)).repeat_interleave(lengths)
        first = lengths.cumsum(0) - lengths
        positions = torch.arange(len(batch.token_ids)) + (starts - first)[owner]
        blocks = self._tables[owner, positions // block_size]
        self.positions = positions.to(device)
        self.slots = (blocks * block_size + positions % block_size).to(device)
        self._owners = owner
        self._at: list[int] = positions.tolist()
        self._first_rows: list[int] = first.tolist()

    def view(self, window: int | None, gather_slots_max: int) -> View:
        """What is visible when a token sees itself and the ``window - 1`` before it (None: all)."""
        found = self._views.get(window)
        if found is None:
            found = self._views[window] = self._build(window, gather_slots_max)
        return found

    def _build(self, window: int | None, gather_slots_max: int) -> View:
        chunks: list[_Chunk] = []
        singles: list[int] = []
        anew: list[int] = []
        for index, sequence in enumerate(self._batch.sequences):
            first = self._first_rows[index]
            if sequence.one_by_one:
                anew.extend(range(first, first + sequence.length))
            elif sequence.length == 1:
                singles.append(first)
            else:
                chunks.append(self._chunk(index, sequence, window))
        buckets = [
            self._bucket(members, window)
            for members in (
                *self._bucketed(singles, window, gather_slots_max, padded=True),
                *self._bucketed(anew, window, gather_slots_max, padded=False),
            )
        ]
        return View(tuple(chunks), tuple(buckets))

    def _lowest_block(self, start: int, window: int | None) -> int:
        """The first block with a key that the token at this position sees."""
        return 0 if window is None else max(0, start - window + 1) // self._block_size

    def _chunk(self, index: int, sequence: SequenceStep, window: int | None) -> _Chunk:
        begin = self._first_rows[index]
        low = self._lowest_block(sequence.start, window)
        base = low * self._block_size
        stop = -(-sequence.stop // self._block_size)
        blocks = self._tables[index, low:stop].to(self._device)
        count = sequence.stop - base
        mask = None
        if sequence.start or (window is not None and sequence.stop > window):
            queries = torch.arange(sequence.start, sequence.stop, device=self._device)[:, None]
            keys = torch.arange(base, sequence.stop, device=self._device)
            visible = keys <= queries
            if window is not None:
                visible &= keys > queries - window
            mask = self._additive(visible)
        return _Chunk(begin, begin + sequence.length, blocks, count, mask)

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        """Made once per step: attention would turn a boolean mask into this in every layer."""
        zeros = torch.zeros(visible.shape, dtype=self._dtype, device=visible.device)
        return zeros.masked_fill_(~visible, float("-inf"))

    def _bucketed(
        self, singles: Sequence[int], window: int | None, gather_slots_max: int, *, padded: bool
    ) -> list[list[int]]:
        """Split rows, by what each sees, so that padding and gathered bytes stay small."""

        def span(row: int) -> int:
            at = self._at[row]
            return at // self._block_size - self._lowest_block(at, window) + 1

        buckets: list[list[int]] = []
        widest = 0
        for row in sorted(singles, key=span):
            blocks = span(row)
            slots = blocks * self._block_size * (len(buckets[-1]) + 1 if buckets else 1)
            if not buckets or slots > gather_slots_max or blocks > widest:
                buckets.append([])
                widest = 2 * blocks + 4 if padded else blocks
            buckets[-1].append(row)
        return buckets

    def _bucket(self, members: Sequence[int], window: int | None) -> _Bucket:
        starts = [self._at[row] for row in members]
        lows = [self._lowest_block(start, window) for start in starts]
        size = self._block_size
        width = max(start // size - low + 1 for start, low in zip(starts, lows, strict=True))
        low = torch.tensor(lows)[:, None]
        columns = (low + torch.arange(width)).clamp(max=self._tables.shape[1] - 1)
        rows = torch.tensor(members)
        blocks = self._tables[self._owners[rows][:, None], columns]
        at = torch.tensor(starts)[:, None]
        keys = low * size + torch.arange(width * size)
        visible = keys <= at
        if window is not None:
            visible &= keys > at - window
        mask = self._additive(visible)
        return _Bucket(
            rows.to(self._device),
            blocks.reshape(-1).to(self._device),
            mask[:, None, None, :].to(self._device),
        )


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pools: tuple[torch.Tensor, torch.Tensor],
    layout: StepLayout,
    *,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Write this step's keys and values, then attend; all [tokens, heads, head size].

    Source of the paged layout: Kwon et al., "Efficient Memory Management for Large Language
    Model Serving with PagedAttention", SOSP 2023.
    """
    keys, values = pools
    keys.flatten(0, 1).index_copy_(0, layout.slots, key)
    values.flatten(0, 1).index_copy_(0, layout.slots, value)
    slot_bytes = 2 * key.shape[1] * key.shape[2] * key.element_size()
    view = layout.view(window, max(1, GATHER_BYTES_MAX // slot_bytes))
    output = query.new_empty(query.shape[0], query.shape[1], value.shape[2])
    for chunk in view.chunks:
        output[chunk.begin : chunk.end] = _attend_chunk(
            query[chunk.begin : chunk.end], keys, values, chunk, scale
        )
    for bucket in view.buckets:
        output[bucket.rows] = _attend_bucket(query[bucket.rows], keys, values, bucket, scale)
    return output


def _attend_chunk(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    chunk: _Chunk,
    scale: float | None,
) -> torch.Tensor:
    """KV heads take the place of the batch, so that the heads sharing one need no copy of it."""
    tokens, heads, size = query.shape
    kv_heads = keys.shape[2]
    group = heads // kv_heads
    seen_keys, seen_values = (
        pool.index_select(0, chunk.blocks)
        .flatten(0, 1)[: chunk.keys_count]
        .transpose(0, 1)[:, None]
        .expand(-1, group, -1, -1)
        for pool in (keys, values)
    )
    attended = scaled_dot_product_attention(
        query.view(tokens, kv_heads, group, size).permute(1, 2, 0, 3),
        seen_keys,
        seen_values,
        attn_mask=chunk.mask,
        is_causal=chunk.mask is None,
        scale=scale,
    )
    return attended.permute(2, 0, 1, 3).reshape(tokens, heads, -1)


def _attend_bucket(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bucket: _Bucket,
    scale: float | None,
) -> torch.Tensor:
    """The query heads of one KV head are the rows of one product; ``enable_gqa`` is 10x slower."""
    rows, heads, size = query.shape
    kv_heads = keys.shape[2]
    seen_keys, seen_values = (
        pool.index_select(0, bucket.blocks).view(rows, -1, kv_heads, pool.shape[3]).transpose(1, 2)
        for pool in (keys, values)
    )
    grouped = query.view(rows, kv_heads, heads // kv_heads, size)
    attended = scaled_dot_product_attention(
        grouped, seen_keys, seen_values, attn_mask=bucket.mask, scale=scale
    )
    return attended.reshape(rows, heads, -1)
