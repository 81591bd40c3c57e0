"""How fast a model's bytes come into memory: ours, verified, beside what others use.

A Llama-shaped bfloat16 checkpoint, loaded whole by each system in turns, each time in a fresh
process, from a local folder (cold and warm) and from nginx on loopback that plays S3 (HTTP and
HTTPS; its files are in the page cache). Ours compares every leaf with the manifest; nobody else
checks anything. Ratios are medians of the rounds' own ratios, so a noisy machine disturbs both.
Each round begins with another system.

    python tools/bench/load.py --markdown --bytes 1000000000 --rounds 5
    python tools/bench/load.py --only http     # or https, cold, warm, cuda
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "crates_py"))
sys.path.insert(0, str(ROOT))

from butterfly_weights.proving import create_manifest, write_manifest
from butterfly_weights.source import open_source
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.s3 import credentials_environment
from tools.bench.load_server import Running, nginx

CHILD = Path(__file__).with_name("load_system.py")
OURS, RUNAI, MMAP = "butterfly", "runai-model-streamer", "safetensors mmap"
BOTO3, RAW, FAST = "boto3 download + safetensors", "raw range GETs, unhashed", "fastsafetensors"
CUDA, PCIE = "butterfly on CUDA", "PCIe copy limit"
PEERS: Mapping[str, tuple[str, ...]] = {
    "http": (OURS, RAW, RUNAI, BOTO3),
    "https": (OURS, RAW, RUNAI),
    "cold": (OURS, RUNAI, MMAP, FAST),
    "warm": (OURS, RUNAI, MMAP, FAST),
    "cuda": (CUDA, PCIE),
}
IN_FLIGHT_BYTES = 256 << 20
SECONDS_MAX = 300


@dataclass(frozen=True)
class Run:
    bytes: int
    seconds: float
    cpu: float
    peak: int

    @property
    def rate(self) -> float:
        return self.bytes / self.seconds / 1e9

    @property
    def cpu_per_gb(self) -> float:
        return self.cpu / self.bytes * 1e9


@dataclass(frozen=True)
class Target:
    """``value`` of ours against the other's must be at least (or at most) ``bound``."""

    scenario: str
    other: str
    what: str
    bound: float
    at_most: bool = False


TARGETS = (
    Target("http", RUNAI, "rate", 3.5),
    Target("http", RAW, "rate", 0.85),
    Target("http", BOTO3, "rate", 4.5),
    Target("http", RUNAI, "cpu_per_gb", 0.35, at_most=True),
    Target("https", RUNAI, "rate", 1.8),
    Target("cold", RUNAI, "rate", 1.2),
    Target("cold", MMAP, "rate", 1.8),
    Target("warm", RUNAI, "rate", 1.3),
    Target("cuda", PCIE, "rate", 0.85),
)
Rounds = Mapping[str, Sequence[Run]]


def shape_of(nbytes: int) -> Shape:
    """A checkpoint of about so many bytes: layers of 100 MB, or of an eighth of it."""
    hidden, inner = (2048, 5504) if nbytes >= 500_000_000 else (1024, 2752)
    layer = 2 * (3 * hidden * inner + 3 * hidden * hidden)
    vocab = 16_384
    layers = max(1, (nbytes - 4 * vocab * hidden) // layer)
    return Shape(
        layer_count=layers, hidden_size=hidden, intermediate_size=inner, vocab_size=vocab, heads=8
    )


def prepare(folder: Path, nbytes: int) -> None:
    write_checkpoint(folder, shape_of(nbytes))
    source = open_source("filesystem", str(folder))
    write_manifest(source, create_manifest(source))
    os.sync()


def set_cache(folder: Path, *, cold: bool) -> None:
    """Drop the files from the page cache, or bring them into it."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while not cold and file.read(8 << 20):
                pass


def run_once(scenario: str, system: str, folder: Path, server: Running) -> Run:
    url = {"http": server.http_url, "https": server.https_url}.get(scenario, "")
    ca_file = str(server.ca_file) if scenario == "https" else ""
    set_cache(folder, cold=scenario == "cold")
    command = [sys.executable, str(CHILD), system, str(folder), url, ca_file]
    environment = os.environ | credentials_environment()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"bytes"')]
    if not lines:
        raise RuntimeError(f"{system} ({scenario}) failed: {done.stderr[-2000:]}")
    return Run(**json.loads(lines[-1]))


def measure(
    scenarios: Sequence[str], folder: Path, server: Running, rounds: int
) -> dict[str, Rounds]:
    found: dict[str, Rounds] = {}
    for scenario in scenarios:
        runs: dict[str, list[Run]] = {system: [] for system in PEERS[scenario]}
        for number in range(rounds):
            first = number % len(runs)
            for system in [*runs, *runs][first : first + len(runs)]:
                runs[system].append(run_once(scenario, system, folder, server))
        found[scenario] = runs
    return found


def ratio(runs: Rounds, one: str, other: str, what: str) -> float:
    """Median of the rounds' own ratios."""
    pairs = zip(runs[one], runs[other], strict=True)
    return float(statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs))


def table(scenario: str, runs: Rounds) -> str:
    ours = next(iter(runs))
    lines = [
        f"| {scenario} | GB/s | CPU s/GB | peak RSS / bytes | {ours} is faster by |",
        "|---|---|---|---|---|",
    ]
    for system, of_system in runs.items():
        rate = statistics.median(run.rate for run in of_system)
        cpu = statistics.median(run.cpu_per_gb for run in of_system)
        peak = statistics.median(run.peak / run.bytes for run in of_system)
        faster = ratio(runs, ours, system, "rate")
        lines.append(f"| {system} | {rate:.2f} | {cpu:.2f} | {peak:.2f} | {faster:.2f} |")
    return "\n".join(lines)


def verdicts(found: Mapping[str, Rounds]) -> str:
    lines = ["| target | measured | bound | |", "|---|---|---|---|"]
    for target in TARGETS:
        if target.scenario not in found:
            continue
        runs = found[target.scenario]
        seen = ratio(runs, next(iter(runs)), target.other, target.what)
        met = seen <= target.bound if target.at_most else seen >= target.bound
        what = "GB/s" if target.what == "rate" else "CPU s/GB"
        sign = "≤" if target.at_most else "≥"
        lines.append(
            f"| {target.scenario}: {what} against {target.other} | {seen:.2f} | "
            f"{sign} {target.bound} | {'met' if met else '**not met**'} |"
        )
    for scenario in (name for name in found if name != "cuda"):
        run = max(found[scenario][OURS], key=lambda run: run.peak)
        bound = 1.05 + IN_FLIGHT_BYTES / run.bytes
        met = run.peak / run.bytes <= bound
        lines.append(
            f"| {scenario}: highest peak RSS / bytes | {run.peak / run.bytes:.2f} | "
            f"≤ 1.05 + in-flight window = {bound:.2f} | {'met' if met else '**not met**'} |"
        )
    return "\n".join(lines)


def has_cuda() -> bool:
    program = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Loading speed beside others, verified.")
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=tuple(PEERS), action="append")
    parser.add_argument("--markdown", action="store_true", help="tables instead of JSON")
    parser.add_argument("--folder", type=Path, help="keep the checkpoint here, for another run")
    arguments = parser.parse_args()
    scenarios = arguments.only or [name for name in PEERS if name != "cuda" or has_cuda()]
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or Path(temporary)
        folder = root / "buckets" / "bench" / "model"
        if not folder.exists():
            prepare(folder, arguments.bytes)
        with nginx(root / "buckets", Path(temporary) / "nginx") as server:
            found = measure(scenarios, folder, server, arguments.rounds)
    if arguments.markdown:
        print("\n\n".join([*(table(name, runs) for name, runs in found.items()), verdicts(found)]))
    else:
        print(
            json.dumps(
                {n: {s: [vars(r) for r in rs] for s, rs in of.items()} for n, of in found.items()}
            )
        )


if __name__ == "__main__":
    main()
