"""What one hop of a data link costs: half a round trip between two processes on this machine.

Each mode is measured beside a plain socket in the same run, in turns, so that a noisy machine
disturbs all alike. The plain socket does what a careful program does with the same bytes: one
``sendmsg`` of length, metadata and payload, one ``recvmsg_into`` buffers that are kept, and
``recv_into`` for the rest; payloads are page-aligned everywhere.

Then ``/status`` of three real nodes is timed, idle and while they generate: elections and leases
need a node process that answers whatever its engine does.

    python tools/bench/hop.py --markdown
"""

import argparse
import json
import mmap
import multiprocessing
import platform
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "crates_py"))
sys.path.insert(0, str(Path(__file__).parents[2]))

from butterfly_wire.datalink import DataLink
from butterfly_wire.tickets import MODES, Mode, prepare_data_socket
from tools.bench import status_latency

SIZES_BYTES = (16 << 10, 64 << 10, 512 << 10)
KINDS = ("socket", "plain", "mac", "aead")
META = bytes(100)  # about a decode step's batch of one sequence
KEY = bytes(32)
WARM_UP_COUNT = 50
TURN_COUNT = 50
_LENGTH = struct.Struct("<Q")


def aligned(size: int) -> memoryview:
    """Memory at a page boundary: copies to and from the kernel are much faster there."""
    return memoryview(mmap.mmap(-1, size))


class PlainSocket:
    """What a data link is compared with: the same bytes, and nothing more than needed."""

    def __init__(self, sock: socket.socket) -> None:
        prepare_data_socket(sock)
        self._sock = sock
        self._head = memoryview(bytearray(_LENGTH.size + len(META)))
        self._payload = aligned(max(SIZES_BYTES))

    def send(self, meta: bytes, payload: memoryview) -> None:
        head = _LENGTH.pack(len(payload)) + meta
        sent = self._sock.sendmsg([head, payload])
        if sent < len(head) + len(payload):
            self._sock.sendall(payload[sent - len(head) :])

    def receive(self) -> tuple[bytes, memoryview]:
        done = self._sock.recvmsg_into([self._head, self._payload])[0] - len(self._head)
        payload = self._payload[: _LENGTH.unpack_from(self._head)[0]]
        while done < len(payload):
            count = self._sock.recv_into(payload[done:])
            if count == 0:
                raise EOFError
            done += count
        return bytes(self._head[_LENGTH.size :]), payload


def open_end(sock: socket.socket, kind: str) -> PlainSocket | DataLink:
    """A plain socket, or a link of the mode."""
    if kind == "socket":
        return PlainSocket(sock)
    mode: Mode = next(mode for mode in MODES if mode == kind)
    return DataLink(sock, KEY, KEY, mode=mode)


def echo(port: int) -> None:
    """The other process: sends everything back, on one connection for each kind."""
    ends = [open_end(socket.create_connection(("127.0.0.1", port)), kind) for kind in KINDS]
    control = socket.create_connection(("127.0.0.1", port))
    while choice := control.recv(2):
        end, count = ends[choice[0]], 10 * choice[1]
        control.sendall(b"!")
        for _ in range(count):
            end.send(*end.receive())


def round_trips(end: PlainSocket | DataLink, payload: memoryview, count: int) -> list[float]:
    """Microseconds of half a round trip, one by one."""
    clock, taken = time.perf_counter, []
    for _ in range(count):
        start = clock()
        end.send(META, payload)
        end.receive()
        taken.append((clock() - start) * 1e6 / 2)
    return taken


def measure(seconds: float) -> dict[int, dict[str, list[float]]]:
    """Samples by size and kind, within about this time."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        peer = multiprocessing.get_context("spawn").Process(target=echo, args=(port,), daemon=True)
        peer.start()
        ends = [open_end(server.accept()[0], kind) for kind in KINDS]
        control = server.accept()[0]

    def run(index: int, payload: memoryview, tens: int) -> list[float]:
        control.sendall(bytes([index, tens]))
        control.recv(1)
        return round_trips(ends[index], payload, tens * 10)

    try:
        return {
            size: _in_turns(run, aligned(size), seconds / len(SIZES_BYTES)) for size in SIZES_BYTES
        }
    finally:
        control.close()
        peer.join(5)
        peer.kill()


def _in_turns(
    run: Callable[[int, memoryview, int], list[float]], payload: memoryview, seconds: float
) -> dict[str, list[float]]:
    deadline = time.monotonic() + seconds
    samples: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for index in range(len(KINDS)):
        run(index, payload, WARM_UP_COUNT // 10)
    while not samples[KINDS[-1]] or time.monotonic() < deadline:
        for index, kind in enumerate(KINDS):
            samples[kind] += run(index, payload, TURN_COUNT // 10)
    return samples


def percentile(samples: list[float], share: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def table(measured: dict[int, dict[str, list[float]]]) -> str:
    """A markdown table: p50 / p99 in microseconds, and the ratio of the medians."""
    lines = [
        "| payload | " + " | ".join(KINDS) + " | plain : mac : aead to socket |",
        "|---" * (len(KINDS) + 2) + "|",
    ]
    for size, samples in measured.items():
        p50 = {kind: percentile(samples[kind], 0.5) for kind in KINDS}
        cells = [f"{p50[kind]:.0f} / {percentile(samples[kind], 0.99):.0f}" for kind in KINDS]
        ratios = " : ".join(f"{p50[kind] / p50['socket']:.2f}" for kind in KINDS[1:])
        lines.append(f"| {size >> 10} KB | " + " | ".join(cells) + f" | {ratios} |")
    count = min(len(s) for samples in measured.values() for s in samples.values())
    where = f"{platform.machine()}, Python {platform.python_version()}"
    lines.append(f"\np50 / p99 in µs, round trip / 2, at least {count} samples each; {where}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of one hop of a data link.")
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    parser.add_argument("--seconds", type=float, default=18.0, help="about how long to measure")
    parser.add_argument(
        "--status-seconds", type=float, default=30.0, help="the same for /status; 0 leaves it out"
    )
    options = parser.parse_args()
    measured = measure(options.seconds)
    status = status_latency.measure(options.status_seconds) if options.status_seconds else None
    if options.markdown:
        print(table(measured))
        if status is not None:
            print(f"\n{status_latency.table(status)}")
    else:
        shares = {"p50": 0.5, "p99": 0.99}
        print(
            json.dumps(
                {
                    "status": status,
                    **{
                        f"{size}": {
                            kind: {name: percentile(s, share) for name, share in shares.items()}
                            for kind, s in samples.items()
                        }
                        for size, samples in measured.items()
                    },
                },
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
