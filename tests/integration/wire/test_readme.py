"""What the crate's README shows runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import butterfly_wire


def test_the_example_runs() -> None:
    readme = Path(butterfly_wire.__file__).with_name("README.md").read_text()
    example = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert example is not None

    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", example.group(1)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": str(Path(butterfly_wire.__file__).parents[1])},
    )

    assert ran.returncode == 0, ran.stderr
