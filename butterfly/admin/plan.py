"""``butterfly-admin plan``: which machine would carry which layers; starts and loads nothing.

The machines are named on the command line, or are the live members of a cluster.
Exit codes: 0 the model fits, 1 it does not, or a source or node does not answer, 2 wrong usage.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from butterfly.admin.exits import EXIT_FAILED, EXIT_OK, UsageError
from butterfly.admin.target import add_target_arguments, read_config, target_of
from butterfly.admin.units import parse_bytes
from butterfly_core.errors import DoesNotFit, InvalidValue, Refused
from butterfly_core.hardware import Capacity
from butterfly_core.ids import NodeId

if TYPE_CHECKING:
    from butterfly.config import NodeConfig
    from butterfly_core.model import ModelSpec
    from butterfly_partition.planned import Demand, Machine

ASSUMED_BYTES_PER_SECOND = 50e9
"""Of a machine whose memory bandwidth was not said: two channels of DDR5."""
FLOPS_PER_BYTE = 20.0
"""Floating-point speed assumed per byte per second; decoding is bound by memory anyway."""
KV_TOKENS = 16384
WORKSPACE_BYTES = 256 * 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_arguments(parser)
    parser.add_argument(
        "--model",
        metavar="SOURCE",
        help="a folder, s3://bucket/path, a folder's URL, hf://org/name or toy-llama (default: "
        "that of --config)",
    )
    parser.add_argument("--endpoint-url", metavar="URL", help="S3-compatible server, or hub")
    parser.add_argument("--region", help="region of an s3:// model")
    parser.add_argument(
        "--node",
        action="append",
        default=[],
        metavar="NAME=MEMORY[,BANDWIDTH]",
        help="a machine, as a=24GiB or a=24GiB,900GB/s; repeat it "
        "(default: the live members of the cluster at --url)",
    )
    parser.add_argument("--kv-tokens", type=int, metavar="N", help=f"default: {KV_TOKENS}")
    parser.add_argument("--objective", choices=("throughput", "latency"))
    parser.add_argument("--json", action="store_true", help="print plan and explanation as JSON")


def run(arguments: argparse.Namespace) -> int:
    from butterfly_partition.explain import explain
    from butterfly_partition.planner import plan

    config = read_config(arguments.config) if arguments.config else None
    machines = machines_of(arguments)
    spec = _spec(arguments, config)
    demand = _demand(arguments, config)
    made, told = None, ""
    try:
        made = plan(spec, machines, demand)
        told = explain(spec, machines, demand, made)
    except DoesNotFit as error:
        told = str(error)
    if arguments.json:
        told = json.dumps({"fits": made is not None, "plan": made and asdict(made), "text": told})
    print(told)
    return EXIT_OK if made else EXIT_FAILED


def machines_of(arguments: argparse.Namespace) -> "list[Machine]":
    """Those of --node, else those of the cluster. Raises UsageError, Refused, Unreachable."""
    if arguments.node:
        if arguments.url:
            raise UsageError("--node and --url both say which machines; give one of them")
        machines = [parse_machine(text) for text in arguments.node]
        if len({machine.node_id for machine in machines}) < len(machines):
            raise UsageError("two --node have the same name")
        return machines
    if arguments.url is None and arguments.config is None:
        raise UsageError("say which machines: --node NAME=MEMORY …, or --url of a running cluster")
    return members_as_machines(target_of(arguments).status())


def parse_machine(text: str) -> "Machine":
    """Read ``a=24GiB`` or ``a=24GiB,900GB/s``. Raises UsageError."""
    from butterfly_partition.planned import Machine

    name, equals, rest = text.partition("=")
    memory_text, _, speed_text = rest.partition(",")
    if not name or not equals:
        raise UsageError(f"--node {text!r}: write NAME=MEMORY, as a=24GiB")
    try:
        memory = parse_bytes(memory_text)
        speed = float(parse_bytes(speed_text.removesuffix("/s"))) if speed_text else 0.0
    except InvalidValue as error:
        raise UsageError(f"--node {text!r}: {error}") from error
    speed = speed or ASSUMED_BYTES_PER_SECOND
    capacity = Capacity("-", name, memory, memory, speed, speed * FLOPS_PER_BYTE)
    return Machine(NodeId(name), capacity)


def members_as_machines(status: Mapping[str, Any]) -> "list[Machine]":
    """The live members with what each offers. Raises Refused when they do not tell."""
    from butterfly.admin.status_view import members_of
    from butterfly_partition.planned import Machine

    machines = [
        Machine(NodeId(str(member.get("node_id"))), _capacity(member))
        for member in members_of(status)
        if member.get("alive", True) and member.get("memory_free_bytes")
    ]
    if not machines:
        raise Refused(
            "no member of the cluster says what its machine offers (yet); name machines with --node"
        )
    return machines


def _capacity(told: Mapping[str, Any]) -> Capacity:
    try:
        free = int(told["memory_free_bytes"])
        speed = float(told.get("memory_bytes_per_second") or ASSUMED_BYTES_PER_SECOND)
        return Capacity(
            device=str(told.get("device")),
            device_name=str(told.get("device_name")),
            memory_free_bytes=free,
            memory_total_bytes=int(told.get("memory_total_bytes") or free),
            memory_bytes_per_second=speed,
            flops_per_second=float(told.get("flops_per_second") or speed * FLOPS_PER_BYTE),
        )
    except (TypeError, ValueError) as error:
        raise Refused(f"a member tells a capacity that cannot be read: {error!r}") from error


def _spec(arguments: argparse.Namespace, config: "NodeConfig | None") -> "ModelSpec":
    from butterfly.admin.model_reading import read_model
    from butterfly.admin.model_source import parse_model_source

    if arguments.model:
        source = parse_model_source(
            arguments.model, endpoint_url=arguments.endpoint_url, region=arguments.region
        )
        return read_model(source)
    if config is None:
        raise UsageError("say which model: --model SOURCE, or --config FILE")
    return read_model(config.model)


def _demand(arguments: argparse.Namespace, config: "NodeConfig | None") -> "Demand":
    from butterfly_partition.planned import Demand

    kv_tokens = config.engine.kv_cache_tokens if config else KV_TOKENS
    return Demand(
        kv_tokens=arguments.kv_tokens if arguments.kv_tokens is not None else kv_tokens,
        workspace_bytes=config.engine.workspace_bytes if config else WORKSPACE_BYTES,
        objective=arguments.objective or (config.cluster.objective if config else "throughput"),
    )
