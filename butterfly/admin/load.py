"""``butterfly-admin load``: another model, or another revision, takes over from the present one.

It is loaded beside that one, fetching only what differs, and takes over when all of it is proven;
if anything goes wrong before, nothing changes. Exit codes: 0 switched (or offered, without
``--wait``), 1 withdrawn, refused or not in time, 2 wrong usage.
"""

import argparse
import time
from collections.abc import Mapping
from typing import Any, Final

from butterfly.admin.exits import EXIT_FAILED, EXIT_OK, UsageError
from butterfly.admin.model_source import parse_model_source
from butterfly.admin.node_http import NodeHttp
from butterfly.admin.offer_view import offer_line
from butterfly.admin.target import add_target_arguments, target_of
from butterfly_core.errors import Refused, Unreachable

PATIENCE_SECONDS: Final = 15.0
LOOK_SECONDS: Final = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a folder that every node has, s3://bucket/prefix, http(s)://…, hf://org/name@revision",
    )
    parser.add_argument("--call-off", action="store_true", help="withdraw what is offered now")
    parser.add_argument("--name", default="", help="its name in the API (default: SOURCE's)")
    parser.add_argument("--endpoint-url", metavar="URL", help="of an S3-compatible server or a hub")
    parser.add_argument("--region", help="the bucket's region")
    parser.add_argument("--wait", action="store_true", help="until it has taken over, or will not")
    parser.add_argument(
        "--timeout",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="of --wait (default: 3600); the cluster goes on after it",
    )
    add_target_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    if not arguments.timeout > 0:
        raise UsageError("--timeout must be above 0 seconds")
    if arguments.call_off:
        return _call_off(arguments)
    place = _place_of(arguments)
    node = target_of(arguments)
    number = node.within(PATIENCE_SECONDS).post("/admin/load", place).get("offer")
    print(f"{place['source_path']} is offered to the cluster (offer {number})", flush=True)
    if not arguments.wait:
        print("butterfly-admin status shows what becomes of it")
        return EXIT_OK
    return _wait(node, number, time.monotonic() + arguments.timeout)


def _call_off(arguments: argparse.Namespace) -> int:
    if arguments.source is not None:
        raise UsageError("--call-off withdraws what is offered now, so it takes no SOURCE")
    told = target_of(arguments).within(PATIENCE_SECONDS).post("/admin/call-off-load", {})
    print(f"offer {told.get('offer')} is withdrawn; the model that served goes on")
    return EXIT_OK


def _place_of(arguments: argparse.Namespace) -> dict[str, str]:
    if arguments.source is None:
        raise UsageError("name the SOURCE of the model, or --call-off")
    source = parse_model_source(
        arguments.source, endpoint_url=arguments.endpoint_url, region=arguments.region
    )
    if arguments.region and source.source_type != "s3":
        raise UsageError(f"--region is for s3:// sources; {arguments.source!r} is none")
    words = {
        "source_type": source.source_type,
        "source_path": source.source_path,
        "endpoint_url": source.endpoint_url,
        "region": source.region,
        "name": arguments.name,
    }
    return {key: value for key, value in words.items() if value}


def _wait(node: NodeHttp, number: object, until: float) -> int:
    """Tell what becomes of the offer, a line whenever that changes. Raises Refused."""
    told = ""
    while time.monotonic() < until:
        offer = _offer(node)
        if offer is not None and offer.get("number") != number:
            raise Refused(f"offer {number} is over, another one came; see butterfly-admin status")
        line = offer_line(offer) if offer is not None else told
        if line != told:
            print(line, flush=True)
            told = line
        state = offer.get("state") if offer is not None else None
        if state == "switched":
            return EXIT_OK
        if state == "withdrawn":
            return EXIT_FAILED
        time.sleep(LOOK_SECONDS)
    raise Refused(f"offer {number} has not ended in time; the cluster goes on with it")


def _offer(node: NodeHttp) -> Mapping[str, Any] | None:
    """None while the node does not answer, which it may do for a moment."""
    try:
        offer = node.status().get("offer")
    except Unreachable:
        return None
    return offer if isinstance(offer, dict) else None
