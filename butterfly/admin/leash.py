"""Runs a command so that it cannot outlive its parent.

``python -m butterfly.admin.leash PARENT COMMAND …``: PARENT is the parent's process id.

The kernel is asked to kill this process when its parent ends, however it ends (also by kill -9),
and then the process becomes the command. It is done here and not between fork and exec, where
little is allowed. Only Linux can do it; elsewhere the command runs without a leash.
"""

import os
import sys

from butterfly.parent_death import end_with


def main(argv: list[str]) -> None:
    """``argv``: the parent's process id, the program, its arguments. Does not return."""
    parent, command = int(argv[0]), argv[1:]
    end_with(parent, "the parent")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
