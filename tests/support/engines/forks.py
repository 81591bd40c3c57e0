"""``forks.py SOCKET butterfly.engine_host``: forks an engine for each launcher that asks.

It imports what an engine imports before the first fork. The flag at the end is there to be found
by who looks for engines in /proc: forks keep this process's command line.
"""

import ctypes
import gc
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

_CLONE_NEWNET = 0x40000000
_ASKED_BYTES_MAX = 1 << 20


@dataclass
class Fork:
    """One engine: who asked for it, and how to notice its end."""

    launcher: socket.socket
    pid: int
    handle: int


def import_all() -> None:
    gc.disable()
    import transformers.models.llama.modeling_llama  # noqa: F401 - for the forks

    import butterfly_engine.measure  # noqa: F401

    gc.freeze()
    gc.enable()


def serve(path: str) -> NoReturn:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(64)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    is_ready = False
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                launcher, _ = listener.accept()
                if not is_ready:
                    import_all()
                    is_ready = True
                fork(launcher, selector)
            elif key.fd in selector.get_map():  # its other half may have gone in this round
                end(key.data, selector)


def fork(launcher: socket.socket, selector: selectors.BaseSelector) -> None:
    try:
        head, descriptors, _, _ = socket.recv_fds(launcher, 4, 4)
        size = int.from_bytes(head, "big")
        if len(head) != 4 or len(descriptors) != 4 or size > _ASKED_BYTES_MAX:
            raise ConnectionError("not a launcher's words")
        with launcher.makefile("rb") as file:
            asked = json.loads(file.read(size))
    except (ConnectionError, ValueError):
        launcher.close()  # killed while it asked
        return
    pid = os.fork()
    if pid == 0:
        become_engine(asked, descriptors, launcher, selector)
    for descriptor in descriptors:
        os.close(descriptor)
    made = Fork(launcher, pid, os.pidfd_open(pid))
    selector.register(launcher, selectors.EVENT_READ, made)
    selector.register(made.handle, selectors.EVENT_READ, made)


def end(made: Fork, selector: selectors.BaseSelector) -> None:
    """Either the fork ended, or its launcher did: then it must."""
    os.kill(made.pid, signal.SIGKILL)  # of a fork that ended, nothing but a zombie is left
    _, status = os.waitpid(made.pid, 0)
    selector.unregister(made.launcher)
    selector.unregister(made.handle)
    os.close(made.handle)
    with suppress(OSError):  # the launcher may be gone
        made.launcher.sendall(b"%d" % os.waitstatus_to_exitcode(status))
    made.launcher.close()


def become_engine(
    asked: dict[str, Any],
    descriptors: list[int],
    launcher: socket.socket,
    selector: selectors.BaseSelector,
) -> NoReturn:
    """In the fork: what the launcher was is what this process is now."""
    code = 1
    try:
        enter_network_of(launcher)
        arguments: list[str] = asked["arguments"]
        channel = int(arguments[arguments.index("--fd") + 1])
        arguments[arguments.index("--node") + 1] = str(os.getppid())  # whom it must not outlive
        kept = [os.dup(descriptor) for descriptor in descriptors]
        for key in list(selector.get_map().values()):
            os.close(key.fd)
        launcher.close()
        selector.close()
        for descriptor, number in zip(kept, (0, 1, 2, channel), strict=True):
            os.dup2(descriptor, number)
        for descriptor in {*kept, *descriptors} - {0, 1, 2, channel}:
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["directory"])

        from butterfly.engine_host.main import main

        code = main(arguments)
    except SystemExit as ended:
        if isinstance(ended.code, int | None):
            code = ended.code or 0
        else:
            sys.stderr.write(f"{ended.code}\n")
    except Exception:  # noqa: BLE001 - what an interpreter would tell
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def enter_network_of(launcher: socket.socket) -> None:
    """A node may run in a network namespace of its own."""
    theirs = launcher.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = int.from_bytes(theirs[:4], sys.byteorder)
    mine = os.readlink("/proc/self/ns/net")
    if os.readlink(f"/proc/{pid}/ns/net") == mine:
        return
    with open(f"/proc/{pid}/ns/net", "rb") as namespace:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")


if __name__ == "__main__":
    serve(sys.argv[1])
