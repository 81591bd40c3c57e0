"""The README's example runs as it stands."""

import logging
import re
from pathlib import Path

import butterfly_telemetry


def test_the_example_of_the_readme_runs() -> None:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    readme = Path(butterfly_telemetry.__file__).with_name("README.md").read_text()
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert example is not None
    try:
        exec(compile(example.group(1), "README.md", "exec"), {})
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
