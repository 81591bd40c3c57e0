"""Runs a command so that it cannot outlive its parent.

``python -m butterfly.admin.leash PARENT COMMAND …``: PARENT is the parent's process id.

The kernel is asked to kill this process when its parent ends, however it ends (also by kill -9),
and then the process becomes the command. It is done here and not between fork and exec, where
little is allowed. Only Linux can do it; elsewhere the command runs without a leash.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """``argv``: the parent's process id, the program, its arguments. Does not return."""
    parent, command = int(argv[0]), argv[1:]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
        if os.getppid() != parent:  # it died before the leash was on
            sys.exit("the parent is gone")
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
