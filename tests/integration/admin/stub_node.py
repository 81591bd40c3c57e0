"""A stub, not a node: answers /status and the chat API as documented, and computes nothing.

``up`` is tried on it: it takes the same flags as ``butterfly-node``, reads its configuration the
same way, walks through the phases one per request of /status, and obeys the environment:
``STUB_DIES_IN`` (a phase), ``STUB_STAYS_IN`` (a phase), ``STUB_IGNORES_SIGTERM``,
``STUB_REFUSES`` (questions).
"""

import argparse
import fcntl
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from butterfly.config import NodeConfig, load_config

PHASES = (
    ("COLD", "cold_start"),
    ("JOINING", "discovery"),
    ("JOINING", "election"),
    ("LOADING", "assignment"),
    ("LOADING", "loading_weights"),
    ("READY", "warmup"),
    ("OPERATIONAL", "serving"),
)
WORDS = ("I ", "am ", "a ", "stub", ".")


class Stub:
    """What the stub pretends to be."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.looks = 0
        self.freed: list[int] = []
        self.node_id = f"{config.node.http_address.port:032x}"

    def status(self) -> dict[str, Any]:
        state, phase = PHASES[min(self.looks, len(PHASES) - 1)]
        if phase != os.environ.get("STUB_STAYS_IN"):
            self.looks += 1
        if phase == os.environ.get("STUB_DIES_IN"):
            sys.stderr.write("the stub gives up the ghost\n")
            sys.stderr.flush()
            os._exit(7)
        percent = 100.0 * min(self.looks, len(PHASES)) / len(PHASES)
        me = {
            "node_id": self.node_id,
            "address": str(self.config.node.bind_address),
            "http_address": str(self.config.node.http_address),
            "role": self.config.node.role,
            "version": "0.1.0",
            "voter": True,
            "alive": True,
            "state": state,
            "phase": phase,
            "progress_percent": percent,
            "layers": "0-5",
            "device": "cpu",
            "bytes_done": 1024 * self.looks,
            "bytes_total": 1024 * len(PHASES),
            "bytes_from_source": 0,
            "bytes_from_cache": 0,
            "bytes_from_peers": 0,
        }
        return {
            "state": state,
            "phase": phase,
            "progress_percent": percent,
            "cluster_size": 2 * self.config.cluster.quorum_size - 1,  # up asks for a majority
            "cluster_name": self.config.cluster.cluster_name,
            "coordinator": self.node_id,
            "node_id": self.node_id,
            "epoch": 1,
            "term": 1,
            "merkle_root": "ab" * 32,
            "model": {
                "name": self.config.model.name,
                "layer_count": 6,
                "total_bytes": 7168,
                "source": self.config.model.source_path,
            },
            "members": [me],
            "errors": [],
            "version": "0.1.0",
            "uptime_seconds": 1.0,
        }


class Handler(BaseHTTPRequestHandler):
    """Three routes of the documented interface."""

    stub: Stub

    def do_GET(self) -> None:
        answer = self.stub.status() if self.path == "/status" else {"status": "ok"}
        self._json(answer)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/admin/clear-cache":
            asked = json.loads(body)
            count = 1 if asked["older_than_seconds"] else 2
            self._json({"freed_bytes": 2048 * count, "entries": count, "dry_run": asked["dry_run"]})
            return
        if self.path == "/admin/repin":
            self._json({"given_up": json.loads(body)["root"]})
            return
        if os.environ.get("STUB_REFUSES"):
            self._json({"error": {"message": "not today"}}, status=503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for word in WORDS:
            chunk = {"choices": [{"index": 0, "delta": {"content": word}}]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def _json(self, answer: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    config = load_config(parser.parse_args().config, environ=os.environ, flags={})
    number = signal.SIG_IGN if os.environ.get("STUB_IGNORES_SIGTERM") else signal.SIG_DFL
    signal.signal(signal.SIGTERM, number)
    lock = os.open(config.node.data_dir / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    Handler.stub = Stub(config)
    http = config.node.http_address
    ThreadingHTTPServer((http.host, http.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
