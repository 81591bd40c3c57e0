"""``butterfly-admin up``: a local cluster in one command, from nothing to a streamed answer.

Exit codes: 0 stopped by Ctrl-C, SIGTERM or --exit-when-ready; 1 a node died or the cluster did
not become ready; 2 wrong usage.
"""

import argparse
import shlex
import sys
from pathlib import Path

from butterfly.admin.exits import UsageError
from butterfly.admin.model_source import TOY_MODEL

READY_SECONDS_MAX = 1800.0
GRACE_SECONDS = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--model",
        default=TOY_MODEL,
        metavar="SOURCE",
        help=f"a folder, s3://bucket/path, a folder's URL, hf://org/name, or {TOY_MODEL} "
        "(default): a toy that ships with it",
    )
    parser.add_argument(
        "--endpoint-url",
        metavar="URL",
        help="S3-compatible server of an s3:// model, or hub of hf://",
    )
    parser.add_argument("--region", help="region of an s3:// model")
    parser.add_argument(
        "--s3",
        action="store_true",
        help="serve the model's folder from a real local S3 server (rclone)",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="keep configurations, logs and weights there (default: a temporary folder)",
    )
    parser.add_argument("--port-base", type=int, default=7000, metavar="PORT", help="default: 7000")
    parser.add_argument(
        "--http-port-base", type=int, default=8080, metavar="PORT", help="default: 8080"
    )
    parser.add_argument("--exit-when-ready", action="store_true", help="stop after the answer")
    parser.add_argument(
        "--ask",
        metavar="TEXT",
        help="the question (default: one that suits the model; empty: none)",
    )
    parser.add_argument(
        "--ready-timeout",
        type=float,
        default=READY_SECONDS_MAX,
        metavar="SECONDS",
        help=f"give up after (default: {READY_SECONDS_MAX:.0f})",
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE_SECONDS,
        metavar="SECONDS",
        help=f"between SIGTERM and SIGKILL at the end (default: {GRACE_SECONDS:.0f})",
    )
    parser.add_argument(
        "--node-program",
        metavar="COMMAND",
        help="what starts a node (default: this Python's butterfly.node.main)",
    )


def run(arguments: argparse.Namespace) -> int:
    from butterfly.admin.up_cluster import LocalCluster, Wishes

    program = shlex.split(arguments.node_program or "")
    if arguments.node_program is not None and not program:
        raise UsageError("--node-program names no command")
    wishes = Wishes(
        nodes=arguments.nodes,
        model=arguments.model,
        endpoint_url=arguments.endpoint_url,
        region=arguments.region,
        local_s3=arguments.s3,
        directory=arguments.directory,
        port_base=arguments.port_base,
        http_port_base=arguments.http_port_base,
        question=arguments.ask,
        exit_when_ready=arguments.exit_when_ready,
        ready_seconds_max=arguments.ready_timeout,
        grace_seconds=arguments.grace,
        node_program=tuple(program or (sys.executable, "-m", "butterfly.node.main")),
    )
    return LocalCluster(wishes).run()
