"""The package keeps its promises to those who import it."""

import re
import subprocess
import sys
from pathlib import Path

import butterfly_engine

PURE = ["batch", "blocks", "counter_random", "link", "memory", "params", "scheduler", "supported"]
ROOT = Path(butterfly_engine.__file__).parent


def test_pure_files_load_no_tensors() -> None:
    path = f"import sys; sys.path[:0] = {sys.path!r}; "
    wanted = ", ".join(f"butterfly_engine.{module}" for module in PURE)
    ask = f"import {wanted}; print(*({{'torch', 'numpy'}} & set(sys.modules)))"
    heard = subprocess.run(
        [sys.executable, "-c", path + ask], capture_output=True, text=True, check=True
    )

    assert heard.stdout.strip() == ""


def test_the_readmes_example_runs() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
