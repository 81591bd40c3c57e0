"""``butterfly-admin clear-cache``: deletes cached weights, here or at one node of the cluster.

A cache in use is only touched by the node that uses it. Nothing goes without a yes.
Exit codes: 0 cleared (or nothing to clear), 1 refused by a node or not confirmed, 2 wrong usage.
"""

import argparse
import sys
from pathlib import Path

from butterfly.admin.data_folder import cache_folder, folder_bytes, is_in_use
from butterfly.admin.exits import EXIT_FAILED, EXIT_OK, UsageError
from butterfly.admin.node_http import NodeHttp
from butterfly.admin.status_view import members_of
from butterfly.admin.target import add_target_arguments, read_config, target_of
from butterfly.admin.units import bytes_text
from butterfly_core.errors import Refused
from butterfly_core.ids import short

PATIENCE_SECONDS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_arguments(parser)
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="a node's data_dir on this machine"
    )
    parser.add_argument(
        "--node", metavar="ID", help="a node of the cluster (the start of its id is enough)"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(arguments: argparse.Namespace) -> int:
    if arguments.node:
        return _clear_node(_member(target_of(arguments), arguments.node), arguments.yes)
    if arguments.data_dir is None and arguments.config is None:
        if arguments.url is None:
            raise UsageError(
                "say whose cache: --config FILE, --data-dir DIR, --url URL or --node ID"
            )
        return _clear_node(target_of(arguments), arguments.yes)
    data_dir = arguments.data_dir or Path(read_config(arguments.config).node.data_dir)
    if not is_in_use(data_dir):
        return _clear_here(cache_folder(data_dir), arguments.yes)
    if arguments.config is None and arguments.url is None:
        raise Refused(
            f"a running node uses {data_dir}; let that node clear it: add --config FILE or "
            "--url http://ITS-HTTP-ADDRESS, or stop the node first"
        )
    return _clear_node(target_of(arguments), arguments.yes)


def _clear_here(folder: Path, sure: bool) -> int:
    held = folder_bytes(folder)
    if held == 0:
        print(f"{folder} holds nothing")
        return EXIT_OK
    if not _confirmed(
        f"delete {bytes_text(held)} ({held} bytes) of cached weights in {folder}?", sure
    ):
        return EXIT_FAILED
    from butterfly_weights.cache_files import clear

    freed = clear(folder)
    print(f"freed {bytes_text(freed)} ({freed} bytes)")
    return EXIT_OK


def _clear_node(node: NodeHttp, sure: bool) -> int:
    if not _confirmed(f"delete the cached weights of the node at {node.url}?", sure):
        return EXIT_FAILED
    patient = NodeHttp(node.url, node.api_key, PATIENCE_SECONDS)
    freed = patient.post("/admin/clear-cache", {}).get("freed_bytes")
    print(f"the node at {node.url} freed {bytes_text(freed) if isinstance(freed, int) else freed}")
    return EXIT_OK


def _member(asked: NodeHttp, beginning: str) -> NodeHttp:
    """The HTTP interface of the one member whose id begins so. Raises UsageError, Refused."""
    members = members_of(asked.status())
    found = [member for member in members if str(member.get("node_id")).startswith(beginning)]
    if len(found) != 1:
        known = ", ".join(short(str(member.get("node_id"))) for member in members) or "none"
        many = "several nodes have ids that begin" if found else "no node has an id that begins"
        raise UsageError(f"{many} with {beginning!r}; the members are {known}")
    node_id, address = found[0].get("node_id"), found[0].get("http_address")
    if not address:
        raise Refused(f"{asked.url} does not know the HTTP address of {beginning}")
    node = asked.at(str(address))
    # A member that listens on loopback tells an address that here leads to somebody else.
    if node.status().get("node_id") != node_id:
        raise Refused(
            f"{node.url} is not the node {short(str(node_id))}, but its address as seen there; "
            "run this on its machine, or name it with --url"
        )
    return node


def _confirmed(question: str, sure: bool) -> bool:
    if sure:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is at the terminal to say so; add --yes")
    if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return True
    print("nothing deleted")
    return False
