"""``launch.py SOCKET butterfly.engine_host --fd N --node PID ...``: an engine by forking.

Only the standard library: it stands for the engine towards the node, and ends as the fork ends.
"""

import ctypes
import json
import os
import signal
import socket
import sys


def main() -> None:
    path, arguments = sys.argv[1], sys.argv[3:]
    node = int(arguments[arguments.index("--node") + 1])
    channel = int(arguments[arguments.index("--fd") + 1])
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != node:
        sys.exit("the node is gone")
    asked = json.dumps(
        {"arguments": arguments, "environment": dict(os.environ), "directory": os.getcwd()}
    ).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as forks:
        forks.connect(path)
        socket.send_fds(forks, [len(asked).to_bytes(4, "big")], [0, 1, 2, channel])
        forks.sendall(asked)
        os.close(channel)
        told = forks.recv(16)
    code = int(told or b"1")
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
