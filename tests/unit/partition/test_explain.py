"""Explanations: they line up, and following their advice makes the model fit."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_core.errors import DoesNotFit
from butterfly_core.hardware import Capacity
from butterfly_core.ids import NodeId
from butterfly_core.model import ModelSpec
from butterfly_partition.explain import explain
from butterfly_partition.planned import Demand, Machine
from butterfly_partition.planner import plan
from butterfly_partition.remedies import covered_layers, missing
from butterfly_partition.sizes import human_bytes

MIB, GIB = 1 << 20, 1 << 30
MODEL = ModelSpec(
    name="llama-8b",
    architecture="LlamaForCausalLM",
    layer_count=32,
    hidden_size=4096,
    vocab_size=128256,
    context_length=8192,
    dtype="bfloat16",
    tied=False,
    kv_bytes_per_token=4096,
    part_bytes={
        "embed": GIB,
        "norm": 8192,
        "head": GIB,
        **{f"layers.{i}": 416 * MIB for i in range(32)},
    },
    revision="r",
)
DEMAND = Demand(16384, 256 * MIB)


def machine(digit: int, free: int) -> Machine:
    capacity = Capacity("cuda:0", "a card", free, 24 * GIB, 5e11, 1e14)
    return Machine(NodeId(f"{digit:x}" * 32), capacity)


def refusal(machines: Sequence[Machine], demand: Demand = DEMAND) -> str:
    with pytest.raises(DoesNotFit) as refused:
        plan(MODEL, machines, demand)
    return str(refused.value)


def test_a_plan_is_a_table_whose_columns_line_up() -> None:
    machines = [machine(1, 12 * GIB), machine(2, 24 * GIB), machine(3, MIB)]
    table = explain(MODEL, machines, DEMAND, plan(MODEL, machines, DEMAND)).splitlines()

    assert table == [
        "llama-8b: 32 layers, 15.0 GiB of weights, KV cache for 16384 tokens, 2 of 3 nodes",
        "node      device  layers   weights  KV cache  workspace      free  est. ms/step",
        "11111111  cuda:0  0-16    7.91 GiB  1.06 GiB    256 MiB  12.0 GiB         14.91",
        "22222222  cuda:0  17-31   7.09 GiB   960 MiB    256 MiB  24.0 GiB         15.31",
        "33333333  cuda:0  none           -         -          -  1.00 MiB             -",
        "slowest stage 15.31 ms, all stages 30.22 ms (estimates without the network)",
    ]


def test_a_refusal_says_per_node_why_and_what_would_help() -> None:
    text = refusal([machine(1, 8 * GIB), machine(2, 8 * GIB), machine(3, 100 * MIB)])

    assert "llama-8b does not fit: 32 layers, 15.0 GiB of weights, 2.00 GiB of KV cache" in text
    assert "3 nodes offer 16.1 GiB" in text
    assert re.search(
        r"11111111  cuda:0  8\.00 GiB  16 layers   a layer needs 480 MiB; 1\.00 GiB", text
    )
    assert re.search(
        r"33333333  cuda:0  100 MiB +0 layers +the workspace alone needs 156 MiB", text
    )
    assert "kv_cache_tokens" in text
    assert "add a machine with at least" in text
    assert "raise [node] capacity" in text


def test_the_advised_kv_cache_fits_and_one_token_more_does_not() -> None:
    machines = [machine(1, 9 * GIB), machine(2, 8 * GIB)]
    advised = re.search(r"kv_cache_tokens to (\d+) or less", refusal(machines))
    assert advised is not None
    tokens = int(advised.group(1))

    plan(MODEL, machines, replace(DEMAND, kv_tokens=tokens))
    refusal(machines, replace(DEMAND, kv_tokens=tokens + 1))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6 * 1024), min_size=1, max_size=3))
def test_what_is_said_to_be_missing_is_enough(mebibytes: list[int]) -> None:
    machines = [machine(i + 1, size * MIB) for i, size in enumerate(mebibytes)]
    try:
        plan(MODEL, machines, DEMAND)
    except DoesNotFit:
        lacking = missing(MODEL, machines, DEMAND)
    else:
        return

    if lacking is not None:
        share = round(lacking[1] * 10)
        more = [machine(i + 1, m * MIB * (1000 + share) // 1000) for i, m in enumerate(mebibytes)]
        plan(MODEL, more, DEMAND)


def test_the_advised_machine_is_enough() -> None:
    machines = [machine(1, 8 * GIB)]
    text = refusal(machines)

    assert "add a machine with at least 9.69 GiB free" in text
    plan(MODEL, [*machines, machine(2, int(9.69 * GIB))], DEMAND)


def test_how_far_the_machines_reach_is_counted() -> None:
    assert covered_layers(MODEL, [machine(1, 8 * GIB)], DEMAND) == 14
    assert covered_layers(MODEL, [machine(1, MIB)], DEMAND) == 0


def test_no_machines_at_all_is_explained_too() -> None:
    assert "one node, it needs 17.3 GiB free" in refusal([])


def test_a_hopeless_case_does_not_pretend() -> None:
    text = refusal([machine(1, MIB)])

    assert "Four times their memory would not be enough." in text


def test_only_so_many_nodes_are_named() -> None:
    text = refusal([replace(machine(1, MIB), node_id=NodeId(f"{i:032x}")) for i in range(40)])

    assert "and 8 more" in text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1536, "1.50 KiB"),
        (256 * MIB, "256 MiB"),
        (10 * GIB, "10.0 GiB"),
        (70 * GIB, "70.0 GiB"),
        (1 << 50, "1.00 PiB"),
    ],
)
def test_sizes_have_three_digits(count: int, text: str) -> None:
    assert human_bytes(count) == text
