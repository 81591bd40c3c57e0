"""``butterfly-admin status``: the cluster at a glance, once or until Ctrl-C.

Exit codes: 0 the node answered, 1 it did not, 2 wrong usage.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from butterfly.admin.exits import EXIT_OK
from butterfly.admin.node_http import NodeHttp
from butterfly.admin.target import add_target_arguments, target_of
from butterfly_core.errors import ButterflyError

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERVAL_SECONDS_MIN = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the node's answer as it is")
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="what a majority has agreed on by now, or an error when none can be reached",
    )
    parser.add_argument("--watch", action="store_true", help="keep showing it until Ctrl-C")
    parser.add_argument(
        "--interval",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="between two looks (default: 1)",
    )


def run(arguments: argparse.Namespace) -> int:
    node = target_of(arguments)
    if arguments.watch:
        interval = max(arguments.interval, INTERVAL_SECONDS_MIN)
        return _watch(node, interval, as_json=arguments.json, fresh=arguments.fresh)
    status = node.status(fresh=arguments.fresh)
    if arguments.json:
        _print_json(status)
        return EXIT_OK
    from butterfly.admin.status_view import console

    console().print(picture(status))
    return EXIT_OK


def picture(status: Mapping[str, Any]) -> "RenderableType":
    """Everything of one /status: summary, table of members, errors."""
    from rich.console import Group
    from rich.text import Text

    from butterfly.admin.status_view import error_lines, members_table, summary_lines

    summary = [Text(line) for line in summary_lines(status)]
    errors = [Text(line, style="red") for line in error_lines(status)]
    return Group(*summary, Text(), members_table(status), *errors)


def _watch(node: NodeHttp, interval_seconds: float, *, as_json: bool, fresh: bool) -> int:
    from rich.live import Live

    from butterfly.admin.status_view import console

    if as_json:
        while True:
            _print_json(node.status(fresh=fresh))
            time.sleep(interval_seconds)
    with Live(console=console(), auto_refresh=False) as live:
        while True:
            live.update(_look(node, fresh=fresh), refresh=True)
            time.sleep(interval_seconds)


def _look(node: NodeHttp, *, fresh: bool) -> "RenderableType":
    """A node that is away for a moment is part of what one watches, so it ends nothing."""
    from rich.text import Text

    try:
        return picture(node.status(fresh=fresh))
    except ButterflyError as error:
        return Text(str(error), style="red")


def _print_json(status: Mapping[str, Any]) -> None:
    json.dump(status, sys.stdout, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()
