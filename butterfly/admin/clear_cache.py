"""``butterfly-admin clear-cache``: deletes cached weights, here or at one node of the cluster.

A cache in use is only touched by the node that uses it. Nothing goes without a yes.
Exit codes: 0 cleared (or nothing to clear), 1 refused by a node or not confirmed, 2 wrong usage.
"""

import argparse
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from butterfly.admin.confirming import confirmed
from butterfly.admin.data_folder import cache_folder, is_in_use
from butterfly.admin.exits import EXIT_FAILED, EXIT_OK, UsageError
from butterfly.admin.node_http import NodeHttp
from butterfly.admin.status_view import members_of
from butterfly.admin.target import add_target_arguments, read_config, target_of
from butterfly.admin.units import bytes_text, duration_text, parse_duration
from butterfly_core.errors import Refused
from butterfly_core.ids import short

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What shall go: what was not used for so long (0: all), or only be counted."""

    older_than_seconds: float
    dry_run: bool
    sure: bool

    @property
    def what(self) -> str:
        if not self.older_than_seconds:
            return "cached weights"
        return f"weights not used for {duration_text(self.older_than_seconds)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_arguments(parser)
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="a node's data_dir on this machine"
    )
    parser.add_argument(
        "--node",
        metavar="NAME-or-ID",
        help="a node of the cluster: the start of its id, its address or its host",
    )
    parser.add_argument(
        "--older-than",
        metavar="7d",
        default="0s",
        help="only what was not used for so long (s, min, h, d, w)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace) -> int:
    age = parse_duration(arguments.older_than)
    wish = Wish(age, arguments.dry_run, arguments.yes)
    if arguments.node:
        return _clear_node(_member(target_of(arguments), arguments.node), wish)
    if arguments.data_dir is None and arguments.config is None:
        if arguments.url is None:
            raise UsageError(
                "say whose cache: --config FILE, --data-dir DIR, --url URL or --node ID"
            )
        return _clear_node(target_of(arguments), wish)
    data_dir = arguments.data_dir or Path(read_config(arguments.config).node.data_dir)
    if not is_in_use(data_dir) or (wish.dry_run and arguments.data_dir is not None):
        return _clear_here(cache_folder(data_dir), wish)
    if arguments.config is None and arguments.url is None:
        raise Refused(
            f"a running node uses {data_dir}; let that node clear it: add --config FILE or "
            "--url http://ITS-HTTP-ADDRESS, or stop the node first"
        )
    return _clear_node(target_of(arguments), wish)


def _clear_here(folder: Path, wish: Wish) -> int:
    from butterfly_weights.cache_files import sweep

    age = wish.older_than_seconds
    used_before = time.time() - age if age else math.inf
    held = sweep(folder, used_before=used_before, dry_run=True)
    if not held.entries:
        print(f"{folder} holds no {wish.what}" if age else f"{folder} holds nothing")
        return EXIT_OK
    size = _size(held.nbytes, held.entries)
    if wish.dry_run:
        print(f"{folder} would be freed of {size} of {wish.what}")
        return EXIT_OK
    question = f"delete {size} of {wish.what} in {folder}?"
    if not confirmed(question, wish.sure, otherwise="nothing deleted"):
        return EXIT_FAILED
    freed = sweep(folder, used_before=used_before)
    print(f"freed {_size(freed.nbytes, freed.entries)}")
    return EXIT_OK


def _clear_node(node: NodeHttp, wish: Wish) -> int:
    if not wish.dry_run and not confirmed(
        f"delete the {wish.what} of the node at {node.url}?",
        wish.sure,
        otherwise="nothing deleted",
    ):
        return EXIT_FAILED
    body = {"older_than_seconds": wish.older_than_seconds, "dry_run": wish.dry_run}
    told = node.within(PATIENCE_SECONDS).post("/admin/clear-cache", body)
    size = _size(told.get("freed_bytes"), told.get("entries"))
    print(f"the node at {node.url} {'would free' if wish.dry_run else 'freed'} {size}")
    return EXIT_OK


def _size(nbytes: object, entries: object) -> str:
    """``1.50 GiB (1610612736 bytes, 12 tensors)``."""
    size = f"{bytes_text(nbytes)} ({nbytes} bytes" if isinstance(nbytes, int) else f"{nbytes} ("
    return f"{size}, {entries} tensors)"


def _member(asked: NodeHttp, name: str) -> NodeHttp:
    """The HTTP interface of the one member that is called so. Raises UsageError, Refused."""
    members = members_of(asked.status())
    found = [member for member in members if _is_called(member, name)]
    if len(found) != 1:
        known = ", ".join(
            f"{short(str(member.get('node_id')))} ({member.get('address')})" for member in members
        )
        many = "several nodes are called" if found else "no node is called, or has an id like,"
        raise UsageError(f"{many} {name!r}; the members are {known or 'none'}")
    node_id, address = found[0].get("node_id"), found[0].get("http_address")
    if not address:
        raise Refused(f"{asked.url} does not know the HTTP address of {name}")
    node = asked.at(str(address))
    # A member that listens on loopback tells an address that here leads to somebody else.
    if node.status().get("node_id") != node_id:
        raise Refused(
            f"{node.url} is not the node {short(str(node_id))}, but its address as seen there; "
            "run this on its machine, or name it with --url"
        )
    return node


def _is_called(member: Mapping[str, Any], name: str) -> bool:
    addresses = [str(member.get(key)) for key in ("address", "http_address")]
    hosts = [address.rpartition(":")[0].strip("[]") for address in addresses]
    return str(member.get("node_id")).startswith(name) or name in (*addresses, *hosts)
