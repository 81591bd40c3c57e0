"""``up`` with real processes: the stub node stands in for a node that computes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.checkpoints import write_checkpoint

STUB = Path(__file__).with_name("stub_node.py")
PATIENCE_SECONDS = 60


def words(*extra: str) -> list[str]:
    program = [sys.executable, "-m", "butterfly.admin.main", "up"]
    return [*program, "--node-program", f"{sys.executable} {STUB}", "--port-base", "17000", *extra]


def run_up(*extra: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(*extra),
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@contextmanager
def running_up(*extra: str, **environ: str) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        words(*extra), env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


def read_until(process: "subprocess.Popen[str]", expected: str) -> str:
    assert process.stdout
    heard = ""
    for line in process.stdout:
        heard += line
        if expected in line:
            return heard
    pytest.fail(f"ended without {expected!r}:\n{heard}")


def children_of(directory: Path) -> list[int]:
    """Processes that were started with a configuration in this folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if str(directory).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def wait_until_gone(directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left := [pid for pid in children_of(directory) if pid != os.getpid()]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


def test_from_nothing_to_an_answer_and_nothing_is_left(tmp_path: Path) -> None:
    ended = run_up("--nodes", "3", "--directory", str(tmp_path / "c"), "--exit-when-ready")

    assert ended.returncode == 0, ended.stdout + ended.stderr
    for expected in (
        *("node-1 coordinator", "node-3 worker", "LOADING loading_weights", "OPERATIONAL"),
        *("0-5", "is a toy", "What is the Zen of Python?", "I am a stub."),
    ):
        assert expected in ended.stdout
    assert children_of(tmp_path / "c") == []


def test_a_model_can_be_put_on_a_local_s3_server(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "tiny")
    ended = run_up(
        *("--nodes", "1", "--directory", str(tmp_path / "c"), "--exit-when-ready"),
        *("--model", str(tmp_path / "tiny"), "--s3"),
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "model s3://models/tiny" in ended.stdout
    assert "is a toy" not in ended.stdout
    written = (tmp_path / "c" / "node-1" / "node.toml").read_text()
    assert 'source_path = "s3://models/tiny"' in written
    assert "SECRET" not in written.upper().replace("CLUSTER_SECRET", "").replace(
        "CLUSTER.SECRET", ""
    )
    assert children_of(tmp_path / "c") == [], "the server is gone too"


def test_the_temporary_folder_goes_when_all_went_well(tmp_path: Path) -> None:
    ended = run_up("--nodes", "1", "--exit-when-ready", "--ask", "", TMPDIR=str(tmp_path))

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "question" not in ended.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stays_up_until_it_is_told_to_stop(tmp_path: Path, number: int) -> None:
    with running_up("--nodes", "2", "--directory", str(tmp_path / "c")) as process:
        heard = read_until(process, "Ctrl-C")
        assert re.search(r"status: http://127\.0\.0\.1:\d+/status", heard)
        process.send_signal(number)
        assert process.wait(PATIENCE_SECONDS) == 0
    assert children_of(tmp_path / "c") == []


def test_a_node_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    ended = run_up(
        *(
            "--nodes",
            "1",
            "--directory",
            str(tmp_path / "c"),
            "--exit-when-ready",
            "--grace",
            "0.2",
        ),
        STUB_IGNORES_SIGTERM="1",
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert children_of(tmp_path / "c") == []


def test_the_nodes_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    with running_up("--nodes", "2", "--directory", str(tmp_path / "c")) as process:
        read_until(process, "Ctrl-C")
        assert len(children_of(tmp_path / "c")) == 3
        process.kill()
        process.wait()
        wait_until_gone(tmp_path / "c")


def test_a_node_that_dies_while_starting_shows_its_last_words(tmp_path: Path) -> None:
    ended = run_up("--nodes", "2", STUB_DIES_IN="election", TMPDIR=str(tmp_path))

    assert ended.returncode == 1
    assert re.search(r"node-[12] ended with exit code 7", ended.stdout)
    assert "the stub gives up the ghost" in ended.stdout
    assert list(tmp_path.glob("butterfly-up-*/node-*/node.log")), "the logs are kept"


def test_a_cluster_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    ended = run_up(
        *("--nodes", "1", "--directory", str(tmp_path / "c"), "--ready-timeout", "1"),
        STUB_STAYS_IN="election",
    )

    assert ended.returncode == 1
    assert "not OPERATIONAL after 1 s" in ended.stdout
    assert re.search(r"node-1: .+, log .+node\.log", ended.stdout)


def test_the_death_of_one_node_is_told_and_the_death_of_all_is_the_end(tmp_path: Path) -> None:
    with running_up("--nodes", "2", "--directory", str(tmp_path / "c")) as process:
        read_until(process, "Ctrl-C")
        for pid in children_of(tmp_path / "c"):
            if pid != process.pid:
                os.kill(pid, signal.SIGKILL)
                read_until(process, "was killed by SIGKILL")
        assert process.wait(PATIENCE_SECONDS) == 1


def test_a_question_that_is_refused_is_told(tmp_path: Path) -> None:
    ended = run_up("--nodes", "1", "--exit-when-ready", STUB_REFUSES="1", TMPDIR=str(tmp_path))

    assert ended.returncode == 1
    assert "answers 503: not today" in ended.stdout


def test_a_program_that_does_not_exist_is_told(tmp_path: Path) -> None:
    ended = run_up("--nodes", "1", "--node-program", "/no/such/program", TMPDIR=str(tmp_path))

    assert ended.returncode == 1
    assert "No such file or directory" in ended.stdout


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--nodes", "0"], "from 1 to 64"),
        (["--model", "nothing"], "no folder"),
        (["--node-program", ""], "names no command"),
        (["--model", "s3://bucket/x", "--s3"], "--s3"),
    ],
)
def test_impossible_wishes_are_refused(extra: list[str], expected: str, tmp_path: Path) -> None:
    ended = run_up(*extra, TMPDIR=str(tmp_path))

    assert ended.returncode == 2
    assert expected in ended.stderr
    assert list(tmp_path.iterdir()) == [], "nothing is left"
