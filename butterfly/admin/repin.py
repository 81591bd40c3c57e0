"""``butterfly-admin manifest repin``: gives up the weights that a cluster has pinned.

A model without a manifest is pinned as it was first loaded, and another one is refused. Who
changed it on purpose says so here: all nodes load anew, and what they find is pinned.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from butterfly.admin.confirming import confirmed
from butterfly.admin.exits import EXIT_FAILED, EXIT_OK
from butterfly.admin.target import add_target_arguments, target_of
from butterfly_core.errors import Refused

PATIENCE_SECONDS = 15.0


def add_repin_arguments(parser: argparse.ArgumentParser) -> None:
    add_target_arguments(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def repin(arguments: argparse.Namespace) -> int:
    """Raises UsageError, Refused when nothing is pinned, Unreachable, NotAuthenticated."""
    node = target_of(arguments)
    root = _pinned_root(node.status(), node.url)
    question = f"give up the pinned root {root} and let all nodes load the model anew?"
    if not confirmed(question, arguments.yes, otherwise="nothing changed"):
        return EXIT_FAILED
    node.within(PATIENCE_SECONDS).post("/admin/repin", {"root": root})
    print(f"{root} is given up; the next weights that all nodes load alike will be pinned")
    return EXIT_OK


def _pinned_root(status: Mapping[str, Any], url: str) -> str:
    root = status.get("pinned_root")
    if not isinstance(root, str) or not root:
        raise Refused(
            f"the cluster of {url} has pinned nothing: its model has a manifest, or was never "
            "loaded whole"
        )
    return root
