"""The package keeps its promises to those who import it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import butterfly_engine

PURE = ["batch", "blocks", "counter_random", "link", "memory", "params", "scheduler", "supported"]
ROOT = Path(butterfly_engine.__file__).parent


@pytest.mark.parametrize("module", PURE)
def test_a_pure_file_loads_no_tensors(module: str) -> None:
    ask = (
        f"import butterfly_engine.{module}, sys; print(*({{'torch', 'numpy'}} & set(sys.modules)))"
    )
    path = f"import sys; sys.path[:0] = {sys.path!r}; "
    heard = subprocess.run(
        [sys.executable, "-c", path + ask], capture_output=True, text=True, check=True
    )

    assert heard.stdout.strip() == ""


def test_the_readmes_example_runs() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})
