"""Lets a process end with its parent, however that ends. Only the standard library."""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def end_with(parent: int, name: str) -> None:
    """The kernel kills this process when its parent, of this process id, ends. Only Linux can do
    it; elsewhere nothing happens. Raises SystemExit when the parent is gone already: it died
    before the kernel was asked.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl(PR_SET_PDEATHSIG): {os.strerror(ctypes.get_errno())}")
    if os.getppid() != parent:
        sys.exit(f"{name} is gone")
