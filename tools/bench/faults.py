"""What today's loaders and ours do when the source misbehaves: ``python tools/bench/faults.py``.

Each cell is one process that loads one object of twelve tensors from the test's fault server, and
whose tensors are compared with what was uploaded. Needs the extra ``bench``; a library that is not
installed has no column. Prints a table in Markdown.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "crates_py")]

from butterfly_weights.manifest import MANIFEST_NAME, encode_manifest
from butterfly_weights.proving import create_manifest
from butterfly_weights.source import open_source
from tests.support.checkpoints import Shape, write_checkpoint
from tests.support.fault_server import (
    Answer,
    Asked,
    Change,
    FaultServer,
    cut,
    fault_server,
    flip_bit,
    refuse,
    without_ranges,
)
from tests.support.s3 import credentials_environment
from tools.bench.fault_loaders import LOADERS, SHARD, by_ranges

SHAPE = Shape(layer_count=1, hidden_size=1024, intermediate_size=4096, vocab_size=8192, shards=1)
"""Sixty megabytes, so that nobody has all of it in three answers."""
NAMES = {
    "ours": "Butterfly",
    "runai_model_streamer": "runai-model-streamer",
    "boto3": "boto3",
    "obstore": "obstore",
    "awscrt": "AWS CRT",
}
NOTED_SECONDS = 5.0
IMPORT_SECONDS_MAX = 30.0


@dataclass(frozen=True)
class World:
    """A sound object, and one of the same layout with other bytes."""

    sound: bytes
    other: bytes
    digests: Mapping[str, str]

    @property
    def data_start(self) -> int:
        return 8 + int.from_bytes(self.sound[:8], "little")

    @property
    def middle(self) -> int:
        """A byte of the weights, in the largest tensor."""
        start, stop = max(self.entries.values(), key=lambda e: e[1] - e[0])
        return self.data_start + (start + stop) // 2

    @property
    def entries(self) -> dict[str, tuple[int, int]]:
        header = json.loads(self.sound[8 : self.data_start])
        header.pop("__metadata__", None)
        return {name: tuple(entry["data_offsets"]) for name, entry in header.items()}


Prepare = Callable[[FaultServer, World], None]


def always(change: Callable[[World], Change], times: int | None = None) -> Prepare:
    """A fault of answers with weights; headers come sound."""

    def prepare(server: FaultServer, world: World) -> None:
        inner = change(world)

        def after_header(answer: Answer, asked: Asked, content: bytes) -> None:
            if asked.first is not None and (asked.last or 0) >= world.data_start:
                inner(answer, asked, content)

        server.add(after_header, name=SHARD, times=times)

    return prepare


def replaced(server: FaultServer, world: World) -> None:
    """The fourth answer with weights is the last one from the old object."""
    seen = [0]

    def change(_answer: Answer, asked: Asked, _content: bytes) -> None:
        seen[0] += (asked.last or 0) >= world.data_start
        if seen[0] == 4:
            server.objects[SHARD] = world.other

    server.add(change, name=SHARD)


def shorter(server: FaultServer, world: World) -> None:
    server.objects[SHARD] = world.sound[:-100]


def overlapping(server: FaultServer, world: World) -> None:
    """One tensor's offsets begin four bytes before the end of the one before it."""
    header = json.loads(world.sound[8 : world.data_start])
    name = max(world.entries, key=lambda n: world.entries[n][1] - world.entries[n][0])
    header[name]["data_offsets"] = [offset - 4 for offset in header[name]["data_offsets"]]
    text = json.dumps(header).encode()
    rest = world.sound[world.data_start :]
    server.objects[SHARD] = len(text).to_bytes(8, "little") + text + rest


FAULTS: Mapping[str, Prepare] = {
    "none": lambda _server, _world: None,
    "one bit flipped once": always(lambda world: flip_bit(world.middle), times=1),
    "one bit flipped always": always(lambda world: flip_bit(world.middle)),
    "object replaced in mid-load": replaced,
    "object shorter than its header says": shorter,
    "ranges not supported": always(lambda _: without_ranges),
    "overlapping offsets in the header": overlapping,
    "closed half-way once": always(lambda _: cut("close"), times=1),
    "stall once": always(lambda _: cut("stall"), times=1),
    "503 twice": always(lambda _: refuse(503, "SlowDown"), times=2),
    "403": always(lambda _: refuse(403, "AccessDenied")),
}


def make_world(folder: Path) -> World:
    write_checkpoint(folder / "other", Shape(**{**_fields(), "seed": 2}))
    write_checkpoint(folder / "model", SHAPE)
    source = open_source("filesystem", str(folder / "model"))
    (folder / "model" / MANIFEST_NAME).write_bytes(encode_manifest(create_manifest(source)))
    sound = (folder / "model" / SHARD).read_bytes()
    other = (folder / "other" / SHARD).read_bytes()
    return World(sound, other, by_ranges(lambda start, stop: sound[start:stop]))


def _fields() -> dict[str, Any]:
    return {name: getattr(SHAPE, name) for name in Shape.__dataclass_fields__}


def outcome(loader: str, fault: str, folder: Path, world: World, seconds_max: float) -> str:
    """What one loader does with one fault."""
    with fault_server(folder / "model") as server:
        FAULTS[fault](server, world)
        command = [sys.executable, str(Path(__file__).with_name("fault_loaders.py"))]
        try:
            ran = subprocess.run(
                [*command, loader, server.url],
                env={**os.environ, **credentials_environment()},
                capture_output=True,
                text=True,
                timeout=seconds_max + IMPORT_SECONDS_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"hangs > {seconds_max:.0f} s"
    return judge(ran, world)


def judge(ran: "subprocess.CompletedProcess[str]", world: World) -> str:
    """The words for a table; seconds only where somebody would notice them."""
    found = re.findall(r"seconds=([0-9.]+)", ran.stderr)
    seconds = float(found[-1]) if found else 0.0
    noted = f", {seconds:.0f} s" if seconds > NOTED_SECONDS else ""
    if ran.returncode < 0:
        return f"crash (signal {-ran.returncode}){noted}"
    if ran.returncode:
        return f"error{noted}"
    told = json.loads(ran.stdout.splitlines()[-1])
    wrong = sum(told["digests"].get(name) != digest for name, digest in world.digests.items())
    if wrong:
        return f"**silent**, {wrong} of {len(world.digests)} wrong{noted}"
    return f"healed{noted}" if told["healed"] else f"ok{noted}"


def column(loader: str) -> str:
    if loader == "ours":
        return NAMES[loader]
    package = loader.replace("_", "-")
    return f"{NAMES[loader]} {importlib.metadata.version(package)}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds-max", type=float, default=45.0, help="then a loader hangs")
    parser.add_argument("--loader", action="append", choices=list(LOADERS), help="default: all")
    parser.add_argument("--fault", action="append", choices=list(FAULTS), help="default: all")
    chosen = parser.parse_args(arguments)
    loaders = [
        loader
        for loader in chosen.loader or LOADERS
        if loader == "ours" or importlib.util.find_spec(loader) is not None
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = make_world(folder)
        print(f"| fault | {' | '.join(map(column, loaders))} |")
        print(f"|---|{'---|' * len(loaders)}")
        for fault in chosen.fault or FAULTS:
            cells = [outcome(ldr, fault, folder, world, chosen.seconds_max) for ldr in loaders]
            print(f"| {fault} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
