"""A load's peak of resident memory, measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.s3 import credentials_environment, rclone_s3

ROOT = Path(__file__).parents[3]
# 268 MB, the largest tensor 33 MB.
SHAPE = Shape(
    layer_count=2, hidden_size=2048, intermediate_size=5461, vocab_size=8192, kv_heads=4, seed=3
)
IN_FLIGHT_BYTES_MAX = 256 << 20
DISK_BYTES_MAX = 16 << 20  # eight readers' aligned buffers
SLACK_BYTES = 24 << 20  # threads, connections, huge pages' rounding

# VmHWM, not ru_maxrss: the latter begins with what the process had before exec, which is pytest's.
PROGRAM = """
import json, re, sys
from pathlib import Path
from butterfly_core.layers import all_parts
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.loader import Loader
from butterfly_weights.source import open_source

def peak():
    found = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) << 10

kind, place, url, ring = sys.argv[1:]
source = open_source(kind, place, endpoint_url=url or None)
checkpoint = read_checkpoint(source)
destination = None
if ring:
    import torch
    from butterfly.engine_host.upload import Uploader
    torch.empty(1)
    destination = Uploader(torch.device("cpu"), in_flight_bytes_max=int(ring))
before = peak()
result = Loader(source, checkpoint).load(all_parts(2), destination=destination)
print(json.dumps([peak() - before, result.bytes_from_source]))
source.close()
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    root = tmp_path_factory.mktemp("buckets")
    tensors = write_checkpoint(root / "models" / "big", SHAPE)
    total = sum(len(data) for data in tensors.values())
    assert 240e6 < total < 290e6
    return root, total


def grown(kind: str, place: str, url: str = "", ring: str = "") -> int:
    """By how many bytes the peak of a process's resident memory rose while it loaded."""
    environment = credentials_environment() | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'crates_py'}",
        "PATH": "/usr/bin",
    }
    command = [sys.executable, "-c", PROGRAM, kind, place, url, ring]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout.splitlines()[-1])[0])


def test_a_load_from_a_disk_takes_the_partition_and_the_readers_buffers(
    checkpoint: tuple[Path, int],
) -> None:
    root, total = checkpoint

    assert grown("filesystem", str(root / "models/big")) <= total + DISK_BYTES_MAX + SLACK_BYTES


def test_a_load_over_http_takes_the_partition_and_no_second_copy(
    checkpoint: tuple[Path, int],
) -> None:
    root, total = checkpoint

    with rclone_s3(root) as server:
        peak = grown("s3", "models/big", server.url)

    assert peak <= total + SLACK_BYTES


def test_a_load_to_a_device_takes_the_ring_beside_the_partition(
    checkpoint: tuple[Path, int],
) -> None:
    root, total = checkpoint
    ring = 32 << 20  # here the device is the CPU, so the partition is in the same memory

    peak = grown("filesystem", str(root / "models/big"), ring=str(ring))

    assert ring < IN_FLIGHT_BYTES_MAX
    assert peak <= total + ring + DISK_BYTES_MAX + SLACK_BYTES
