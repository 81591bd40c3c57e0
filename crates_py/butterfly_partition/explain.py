"""A plan as a table for people; or, when nothing fits, why not and what would make it fit."""

from collections.abc import Sequence
from itertools import pairwise

from butterfly_core.ids import short as short_id
from butterfly_core.model import ModelSpec
from butterfly_partition.budget import LayerTable, Limit, layer_table
from butterfly_partition.planned import Demand, Machine, Plan, PlannedStage
from butterfly_partition.remedies import covered_layers, missing, remedies
from butterfly_partition.sizes import human_bytes

_HEADER = ("node", "device", "layers", "weights", "KV cache", "workspace", "free", "est. ms/step")
NODES_SHOWN_MAX = 32
"""Nodes named when nothing fits: the message is also shown in /status."""


def explain(spec: ModelSpec, machines: Sequence[Machine], demand: Demand, plan: Plan | None) -> str:
    """An aligned plain-text table of the plan, or of why there is none (``plan`` None).

    The estimates come from measured bandwidth and speed; they leave out the network.
    """
    if plan is None:
        return _why_not(spec, machines, demand)
    title = (
        f"{spec.name}: {spec.layer_count} layers, {human_bytes(spec.total_bytes)} of weights, "
        f"KV cache for {plan.kv_tokens} tokens, {len(plan.stages)} of {len(machines)} nodes"
    )
    known = {machine.node_id: machine for machine in machines}
    rows = [_row(stage, known[stage.node_id].capacity.device) for stage in plan.stages]
    rows += [
        (short_id(m.node_id), m.capacity.device, "none", "-", "-", "-", _free(m), "-")
        for m in machines
        if m.node_id not in plan.nodes
    ]
    total = (
        f"slowest stage {_ms(plan.slowest_seconds)} ms, all stages {_ms(plan.total_seconds)} ms "
        "(estimates without the network)"
    )
    return "\n".join([title, *_aligned([_HEADER, *rows]), total])


def _row(stage: PlannedStage, device: str) -> tuple[str, ...]:
    return (
        short_id(stage.node_id),
        device,
        str(stage.layers),
        human_bytes(stage.weight_bytes),
        human_bytes(stage.kv_bytes),
        human_bytes(stage.workspace_bytes),
        human_bytes(stage.free_bytes),
        _ms(stage.seconds_per_step),
    )


def _free(machine: Machine) -> str:
    return human_bytes(machine.capacity.memory_free_bytes)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f}" if seconds < 0.1 else f"{seconds * 1000:.0f}"


def _aligned(rows: Sequence[tuple[str, ...]], *, left: int = 3) -> list[str]:
    """Columns of equal width: the first ``left`` ones start, the others end in line."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_cells(row, widths, left)).rstrip() for row in rows]


def _cells(row: tuple[str, ...], widths: Sequence[int], left: int) -> list[str]:
    return [
        cell.ljust(width) if column < left else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _why_not(spec: ModelSpec, machines: Sequence[Machine], demand: Demand) -> str:
    table = layer_table(spec, demand)
    kv_bytes = spec.kv_bytes_per_token * demand.kv_tokens * spec.layer_count
    free = sum(machine.capacity.memory_free_bytes for machine in machines)
    title = (
        f"{spec.name} does not fit: {spec.layer_count} layers, "
        f"{human_bytes(spec.total_bytes)} of weights, {human_bytes(kv_bytes)} of KV cache for "
        f"{demand.kv_tokens} tokens and {human_bytes(demand.workspace_bytes)} of workspace per "
        f"node; {len(machines)} nodes offer {human_bytes(free)}."
    )
    if not machines:
        needed = human_bytes(table.memory_bytes(0, spec.layer_count))
        return f"{title}\nNo node offers memory yet; all on one node, it needs {needed} free."
    rows = [("node", "device", "free", "could hold", "why not more")]
    rows += [_node_row(table, machine) for machine in machines[:NODES_SHOWN_MAX]]
    if len(machines) > NODES_SHOWN_MAX:
        rows.append((f"and {len(machines) - NODES_SHOWN_MAX} more", "", "", "", ""))
    together = f"Together they hold {covered_layers(spec, machines, demand)} of the layers at most."
    advice = [f"  - {remedy}" for remedy in remedies(spec, machines, demand)]
    return "\n".join(
        [
            title,
            *_aligned(rows, left=len(rows[0])),
            f"{together} {_missing(spec, machines, demand)}",
            "Any one of these would make it fit:" if advice else "No single change makes it fit.",
            *advice,
        ]
    )


def _missing(spec: ModelSpec, machines: Sequence[Machine], demand: Demand) -> str:
    short = missing(spec, machines, demand)
    if short is None:
        return "Four times their memory would not be enough."
    lacking = human_bytes(short[0], at_least=True)
    return f"Missing in all: {lacking} ({short[1]:.1f} % on every node)."


def _node_row(table: LayerTable, machine: Machine) -> tuple[str, str, str, str, str]:
    limit = Limit(machine.capacity.memory_free_bytes)
    inner = max(table.reach(limit, start) - start for start in range(table.layer_count))
    return (
        short_id(machine.node_id),
        machine.capacity.device,
        _free(machine),
        "1 layer" if inner == 1 else f"{inner} layers",
        _why_no_more(table, limit, inner),
    )


def _why_no_more(table: LayerTable, limit: Limit, inner: int) -> str:
    if limit.memory_bytes < table.workspace_bytes:
        lacking = human_bytes(table.workspace_bytes - limit.memory_bytes)
        return f"the workspace alone needs {lacking} more"
    least = min(b - a for a, b in pairwise(table.memory))
    if inner == 0:
        whole = human_bytes(least + table.workspace_bytes)
        return f"a layer with KV cache and workspace needs {whole}"
    ends = (
        f"{human_bytes(table.first_bytes)} more as first, {human_bytes(table.last_bytes)} as last"
    )
    return f"a layer needs {human_bytes(least)}; {ends}"
