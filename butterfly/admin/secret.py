"""``butterfly-admin secret``: makes the cluster secret's file, and changes it without downtime.

Nothing here prints a secret, except ``create -``, which is for a pipe.
Exit codes: 0 done, 2 the file cannot be made, or is not at the step before.
"""

import argparse
from pathlib import Path

from butterfly.admin.exits import EXIT_OK

STAGES = ("add", "switch", "finish")
"""In this order; the same as those of ``butterfly_wire.secret_file``, which loads late."""
_NEXT = {
    "add": """\
{path} now holds the old secret, which still mints, and a new one, which is accepted.
1. Do not run this stage on another node, where it would draw another secret: copy this file over
   the cluster secret file of every node (owner: the node's user, mode 600). Running nodes notice
   within seconds; none is restarted.
2. On every node, look at "accepts" in the security part of /status: it must show these two
   fingerprints.
3. Only then, on every node: butterfly-admin secret rotate --stage switch {path}""",
    "switch": """\
{path} now lets the new secret mint; the old one is still accepted.
1. Do the same on every node. Running nodes notice within seconds.
2. On every node, look at "mints" in the security part of /status: it must be the fingerprint
   that mints here.
3. Only then, on every node: butterfly-admin secret rotate --stage finish {path}""",
    "finish": """\
{path} now holds the new secret alone; the old one is refused for new connections.
Do the same on every node. Connections that stand stay until they end or their node restarts.""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="make a file with a new secret, mode 600")
    create.add_argument("path", metavar="PATH", help="a file that is not there yet; - prints it")
    rotate = actions.add_parser(
        "rotate",
        help="take one step of a change of the secret",
        description="add runs on one node, whose file is then copied to the others; switch and "
        "finish run on every node. After each step the fingerprints must be the same on all.",
    )
    rotate.add_argument(
        "--stage",
        choices=STAGES,
        required=True,
        help="add (on one node): draw a new secret and accept it; switch (on every node): mint "
        "with it; finish (on every node): drop the old one",
    )
    rotate.add_argument("path", type=Path, metavar="PATH", help="the cluster secret file")


def run(arguments: argparse.Namespace) -> int:
    from butterfly_wire.secret_file import create_secret_file, new_secret, rotate_secret_file

    if arguments.action == "rotate":
        rotate_secret_file(arguments.path, arguments.stage)
        print(_NEXT[arguments.stage].format(path=arguments.path))
        print(_fingerprints(arguments.path))
    elif arguments.path == "-":
        print(new_secret())
    else:
        create_secret_file(Path(arguments.path))
        print(
            f"made {arguments.path}; copy it to every node, readable by the node's user alone, "
            "and set [security] cluster_secret_file"
        )
    return EXIT_OK


def _fingerprints(path: Path) -> str:
    """As ``/status`` shows them. Raises ConfigError."""
    from butterfly_wire.credentials import SecretFile

    mints, *others = SecretFile(path).load().accepts
    shown = [f"  {mints}  mints and is accepted", *(f"  {each}  is accepted" for each in others)]
    return "\n".join(["Fingerprints, to be the same on all nodes before the next step:", *shown])
