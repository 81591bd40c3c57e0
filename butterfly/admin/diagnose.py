"""``butterfly-admin diagnose``: what would keep a node on this machine from working, and the fix.

Exit codes: 0 no FAIL (there may be WARNs), 1 at least one FAIL, 2 wrong usage.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from butterfly.admin.checks.finding import (
    Check,
    Finding,
    Verdict,
    failed,
    passed,
    run_checks,
    warned,
    worst,
)
from butterfly.admin.checks.situation import Situation
from butterfly.admin.exits import EXIT_FAILED, EXIT_OK
from butterfly.admin.node_http import NodeHttp, node_at
from butterfly.admin.target import (
    DEFAULT_URL,
    add_target_arguments,
    read_api_key,
    read_config,
    target_of,
)
from butterfly_core.errors import ConfigError

if TYPE_CHECKING:
    from butterfly.config import NodeConfig

Look = Callable[[Situation], Sequence[Finding]]
STATUS_SECONDS_MAX = 3.0
COLOURS = {Verdict.PASS: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    config, problem = _read_config(arguments)
    situation = Situation(config, _node(arguments, config))
    findings = [problem, *run_checks(_checks(situation))]
    if arguments.json:
        _print_json(findings, time.monotonic() - began)
    else:
        _print_table(findings)
    return EXIT_FAILED if worst(findings) is Verdict.FAIL else EXIT_OK


def _read_config(arguments: argparse.Namespace) -> "tuple[NodeConfig | None, Finding]":
    if arguments.config is None:
        seen = "none given; only what needs no configuration is checked"
        return None, warned("config", seen, "add --config FILE")
    try:
        config = read_config(arguments.config)
    except ConfigError as error:
        return None, failed(
            "config", str(error), "correct it; butterfly-node --check says the same"
        )
    return config, passed("config", f"{arguments.config} is valid")


def _node(arguments: argparse.Namespace, config: "NodeConfig | None") -> NodeHttp:
    """The node to ask; also with a configuration that is invalid."""
    if config is not None or arguments.url is not None:
        target = target_of(
            argparse.Namespace(
                **{**vars(arguments), "config": arguments.config if config else None}
            )
        )
    else:
        key_file = arguments.api_key_file
        target = node_at(DEFAULT_URL, read_api_key(key_file) if key_file else None)
    return target.within(STATUS_SECONDS_MAX)


def _checks(situation: Situation) -> list[Check]:
    """All checks in the order of the report. Heavy imports happen inside their threads."""
    from butterfly.admin.checks import clock, clusters, machine, network, source, versions

    always: dict[str, tuple[Look, float]] = {
        "memory": (machine.look_at_memory, 40.0),
        "GPU": (machine.look_at_gpus, 10.0),
        "clock": (clock.look_at_clock, 30.0),
        "versions": (versions.look_at_versions, 30.0),
    }
    with_config: dict[str, tuple[Look, float]] = {
        "ports": (network.look_at_ports, 10.0),
        "DNS": (network.look_at_names, 30.0),
        "seed nodes": (network.look_at_seeds, 45.0),
        "cluster": (clusters.look_at_clusters, 30.0),
        "model source": (source.look_at_source, 40.0),
        "disk": (machine.look_at_disk, 40.0),
    }
    if situation.config is None:
        skipped = [_skipped(name) for name in with_config]
    else:
        skipped = [_bound(name, look, situation, s) for name, (look, s) in with_config.items()]
    return skipped + [_bound(name, look, situation, s) for name, (look, s) in always.items()]


def _bound(name: str, look: Look, situation: Situation, timeout_seconds: float) -> Check:
    return Check(name, lambda: look(situation), timeout_seconds)


def _skipped(name: str) -> Check:
    finding = warned(name, "not checked", "needs a valid configuration: --config FILE")
    return Check(name, lambda: [finding], 1.0)


def _print_json(findings: Sequence[Finding], seconds: float) -> None:
    report = {
        "verdict": worst(findings).value,
        "seconds": round(seconds, 3),
        "checks": [
            {"name": f.name, "verdict": f.verdict.value, "seen": f.seen, "fix": f.fix}
            for f in findings
        ],
    }
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _print_table(findings: Sequence[Finding]) -> None:
    from rich.text import Text

    from butterfly.admin.status_view import console

    screen = console()
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        line = Text.assemble(
            (finding.verdict.value, COLOURS[finding.verdict]),
            f"  {finding.name:<{width}}  {finding.seen}",
        )
        screen.print(line, soft_wrap=True)
        if finding.fix:
            screen.print(Text(f"{'':<{width + 8}}→ {finding.fix}", style="dim"), soft_wrap=True)
    counts = [
        f"{sum(f.verdict is verdict for f in findings)} {verdict.value}" for verdict in Verdict
    ]
    screen.print(Text(", ".join(counts), style="bold"))
