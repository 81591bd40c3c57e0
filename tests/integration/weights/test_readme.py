"""The README's example does what it says."""

import re
from pathlib import Path

README = Path(__file__).parents[3] / "crates_py" / "butterfly_weights" / "README.md"


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)

    exec(compile(example, str(README), "exec"), {})
