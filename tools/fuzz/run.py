"""Coverage-guided fuzzing of one target: ``python tools/fuzz/run.py TARGET [libFuzzer options]``.

Inputs that break a target are kept where ``-artifact_prefix`` says; give such a file instead of
options to see the error again.
"""

import pickle
import sys
from pathlib import Path
from typing import Any

import atheris

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[2] / "crates_py")]

READERS = [
    "butterfly_cluster",
    "butterfly_wire",
    "butterfly_weights",
    "butterfly.node",
    "butterfly.engine_host",
]
with atheris.instrument_imports(include=READERS):
    from tools.fuzz.targets import TARGETS


def no_pickle(*_: Any, **__: Any) -> Any:
    raise AssertionError("something tried to unpickle")


def main() -> None:
    """Run until libFuzzer's limits are reached, or a target breaks."""
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: run.py TARGET [libFuzzer options]; targets: {' '.join(TARGETS)}")
    target = TARGETS[sys.argv.pop(1)]
    pickle.loads = pickle.load = no_pickle
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


def write_seeds(folder: Path, name: str) -> None:
    """Put a target's examples where libFuzzer looks for its corpus."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (folder / f"seed-{number}").write_bytes(seed)


if __name__ == "__main__":
    if sys.argv[1:] == ["--list"]:
        print(*TARGETS, sep="\n")
    elif sys.argv[1:2] == ["--seeds"]:
        write_seeds(Path(sys.argv[3]), sys.argv[2])
    else:
        main()
