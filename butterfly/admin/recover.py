"""``butterfly-admin recover``: begins a new cluster of one when the majority is lost for good.

For the one survivor that knows most, while its node is stopped. Without the flag that says so
it only tells what it would do.
Exit codes: 0 recovered, 1 not confirmed or the disk failed, 2 wrong usage.
"""

import argparse
from pathlib import Path

from butterfly.admin.exits import EXIT_FAILED, EXIT_OK, UsageError
from butterfly.admin.target import read_config
from butterfly_cluster.durable_files import FileLock
from butterfly_cluster.recovery import Recovery, carry_out, plan_recovery
from butterfly_cluster.together import finish_replacing
from butterfly_core.errors import ConfigError
from butterfly_core.ids import short

_SURE = "--i-have-lost-the-majority"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--data-dir", type=Path, metavar="DIR", help="the survivor's data_dir")
    place.add_argument("--config", type=Path, metavar="FILE", help="the survivor's configuration")
    parser.add_argument(
        _SURE,
        action="store_true",
        dest="sure",
        help="the other voters never come back; without this flag nothing is changed",
    )


def run(arguments: argparse.Namespace) -> int:
    data_dir = arguments.data_dir or Path(read_config(arguments.config).node.data_dir)
    if not data_dir.is_dir():
        raise UsageError(f"{data_dir} is not a directory; name the survivor's data_dir")
    lock = _lock(data_dir)
    try:
        if arguments.sure and finish_replacing(data_dir):
            print("an interrupted recovery was finished")
            return EXIT_OK
        recovery = plan_recovery(data_dir)
        print(_warning(recovery))
        if not arguments.sure:
            print(f"\nNothing was changed. To do it, add {_SURE}")
            return EXIT_FAILED
        carry_out(data_dir, recovery)
    finally:
        lock.close()
    print(_done(recovery, data_dir))
    return EXIT_OK


def _lock(data_dir: Path) -> FileLock:
    try:
        return FileLock(data_dir / "node.lock")
    except ConfigError as error:
        raise UsageError(f"a running node uses {data_dir}; stop it first") from error


def _warning(recovery: Recovery) -> str:
    lost = sorted(recovery.voters - {recovery.before.node_id})
    names = ", ".join(short(node) for node in lost) or "none"
    learner = recovery.before.node_id not in recovery.voters
    no_vote = "\nThis node was no voter: another survivor may know more." if learner else ""
    return (
        "WARNING: do this on one node only, and only when the other voters are gone for good.\n"
        f"Entries that only they ({names}) held are lost, although they were acknowledged.\n"
        f"All {recovery.last_index} entries in this node's log are kept, also those after "
        f"{recovery.commit_index}, which it does not know to be committed.{no_vote}\n"
        f"node         {short(recovery.before.node_id)}, the only voter afterwards\n"
        f"old cluster  {recovery.old_cluster}\n"
        f"new cluster  {recovery.new_cluster}\n"
        f"members that leave: {', '.join(map(short, recovery.removed)) or 'none'}"
    )


def _done(recovery: Recovery, data_dir: Path) -> str:
    kept = f"*.before-recovery-{short(str(recovery.old_cluster))}"
    return (
        f"\nDone; the old files are kept as {data_dir}/{kept}.\n"
        "Start this node as always. Each other node joins again, under a new id, with\n"
        "  butterfly-node --config FILE --forget\n"
        "With Consul, delete the key butterfly/<cluster name>/founding first."
    )
