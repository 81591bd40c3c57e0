"""``up`` with real nodes and the toy model that ships with Butterfly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS_MAX = 300


@pytest.mark.e2e
@pytest.mark.parametrize("extra", [[], ["--s3"]])
def test_one_command_goes_from_nothing_to_words(tmp_path: Path, extra: list[str]) -> None:
    program = [sys.executable, "-m", "butterfly.admin.main", "up", "--nodes", "2"]
    ports = ["--port-base", "17200", "--http-port-base", "18200"]
    ended = subprocess.run(
        [*program, *ports, "--exit-when-ready", "--ask", "What is the Zen of Python?", *extra],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "OPERATIONAL" in ended.stdout
    answer = ended.stdout.partition("What is the Zen of Python?")[2]
    assert len(answer.split()) > 3, "an answer has words"
    assert list(tmp_path.glob("butterfly-up-*")) == [], "its folder is gone"
