"""Paged attention equals attention written out, for any mixture of chunks and single tokens."""

import random
from collections.abc import Collection

import pytest
import torch

from butterfly_engine import attention
from butterfly_engine.attention import KvPools, StepLayout, attend
from butterfly_engine.batch import SequenceStep, StepBatch

HEADS, SIZE, BLOCK = 4, 8, 4
CPU = torch.device("cpu")


def naive(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, window: int | None
) -> torch.Tensor:
    """Queries [n, heads, size] from ``start`` on, keys [start + n, KV heads, size]."""
    group = query.shape[1] // keys.shape[1]
    rows = []
    for offset, one in enumerate(query):
        stop = start + offset + 1
        low = 0 if window is None else max(0, stop - window)
        seen_keys = keys[low:stop].repeat_interleave(group, 1)
        seen_values = values[low:stop].repeat_interleave(group, 1)
        weights = (torch.einsum("hd,shd->hs", one, seen_keys) * SIZE**-0.5).softmax(-1)
        rows.append(torch.einsum("hs,shd->hd", weights, seen_values))
    return torch.stack(rows)


class History:
    """Random sequences whose keys and values are remembered, and the pools they were written to."""

    def __init__(self, kv_heads: int, sequences: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.chance = random.Random(seed)
        self.kv_heads = kv_heads
        self.pools = KvPools(
            {0: (kv_heads, SIZE)}, blocks=256, block_size=BLOCK, dtype=torch.float32, device=CPU
        ).layers[0]
        blocks = list(range(256))
        self.chance.shuffle(blocks)
        self.tables = [tuple(blocks[i * 40 : i * 40 + 40]) for i in range(sequences)]
        empty = torch.empty(0, kv_heads, SIZE)
        self.keys = [empty] * sequences
        self.values = [empty] * sequences

    def random(self, tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, SIZE, generator=self.generator)

    def step(
        self, lengths: dict[int, int], window: int | None, *, one_by_one: Collection[int] = ()
    ) -> None:
        """Run one step of these sequences and compare."""
        steps, starts = [], {}
        for one, length in lengths.items():
            starts[one] = len(self.keys[one])
            used = -(-(starts[one] + length) // BLOCK)
            table, alone = self.tables[one][:used], one in one_by_one
            steps.append(SequenceStep(one, starts[one], length, table, one_by_one=alone))
        total = sum(lengths.values())
        batch = StepBatch(0, 1, (0,) * total, tuple(steps))
        query = self.random(total, HEADS)
        key, value = self.random(total, self.kv_heads), self.random(total, self.kv_heads)
        layout = StepLayout(batch, block_size=BLOCK, dtype=torch.float32, device=CPU)

        seen = attend(query, key, value, self.pools, layout, scale=SIZE**-0.5, window=window)

        row = 0
        for one, length in lengths.items():
            rows = slice(row, row + length)
            self.keys[one] = torch.cat([self.keys[one], key[rows]])
            self.values[one] = torch.cat([self.values[one], value[rows]])
            expected = naive(query[rows], self.keys[one], self.values[one], starts[one], window)
            torch.testing.assert_close(seen[rows], expected, atol=1e-5, rtol=1e-5)
            row += length


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 4, 5, 17])
def test_mixed_steps_equal_attention_written_out(kv_heads: int, window: int | None) -> None:
    history = History(kv_heads, sequences=6, seed=kv_heads)
    for _ in range(14):
        members = history.chance.sample(range(6), history.chance.randint(1, 6))
        lengths = {one: history.chance.choice((1, 1, 1, 2, 5, 9)) for one in members}
        history.step(lengths, window, one_by_one=members[:2])


@pytest.mark.parametrize("window", [None, 17])
def test_what_was_attended_alone_comes_out_bit_by_bit_when_many_are_attended_anew(
    window: int | None,
) -> None:
    """Sizes of a real model: with tiny ones a chunk of a prompt rounds alike, too."""
    tokens, heads, kv_heads, size = 150, 6, 2, 32
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(tokens, count, size, generator=generator).bfloat16()
        for count in (heads, kv_heads, kv_heads)
    )
    table = tuple(range(tokens // BLOCK + 1))

    def run(steps: list[SequenceStep]) -> torch.Tensor:
        pools = KvPools(
            {0: (kv_heads, size)}, blocks=64, block_size=BLOCK, dtype=torch.bfloat16, device=CPU
        ).layers[0]
        seen = []
        for one in steps:
            batch = StepBatch(0, 1, (0,) * one.length, (one,))
            layout = StepLayout(batch, block_size=BLOCK, dtype=torch.bfloat16, device=CPU)
            rows = slice(one.start, one.stop)
            scale = size**-0.5
            part = (query[rows], key[rows], value[rows])
            seen.append(attend(*part, pools, layout, scale=scale, window=window))
        return torch.cat(seen)

    prompt = SequenceStep(1, 0, 9, table)
    alone = run([prompt, *(SequenceStep(1, at, 1, table) for at in range(9, tokens))])
    anew = run([prompt, SequenceStep(1, 9, tokens - 9, table, one_by_one=True)])
    as_prompt = run([SequenceStep(1, 0, tokens, table)])

    assert torch.equal(alone, anew)
    assert not torch.equal(alone, as_prompt), "nothing is proven where all ways round alike"


def test_small_buckets_give_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    slot_bytes = 2 * 2 * SIZE * 4
    monkeypatch.setattr(attention, "GATHER_BYTES_MAX", 16 * slot_bytes)
    history = History(2, sequences=6, seed=5)
    history.step({0: 1, 1: 9, 2: 30, 3: 7, 4: 64, 5: 2}, None)
    for _ in range(3):
        history.step(dict.fromkeys(range(6), 1), None)


def test_lengths_far_apart_do_not_share_a_bucket() -> None:
    tables = [tuple(range(40)), (40,), (41,)]
    steps = tuple(
        SequenceStep(number, len(table) * BLOCK - 1, 1, table)
        for number, table in enumerate(tables)
    )
    layout = StepLayout(
        StepBatch(0, 1, (0, 0, 0), steps), block_size=BLOCK, dtype=torch.float32, device=CPU
    )

    buckets = layout.view(None, 10_000).buckets

    assert [bucket.rows.tolist() for bucket in buckets] == [[1, 2], [0]]


def test_a_window_gathers_only_the_blocks_it_sees() -> None:
    step = SequenceStep(0, 150, 1, tuple(range(40)))
    layout = StepLayout(
        StepBatch(0, 1, (0,), (step,)), block_size=BLOCK, dtype=torch.float32, device=CPU
    )

    (bucket,) = layout.view(8, 10_000).buckets

    assert bucket.blocks.tolist() == [35, 36, 37]
    assert torch.isfinite(bucket.mask).sum() == 8
