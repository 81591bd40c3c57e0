"""The command line itself: what it loads, what it refuses, how errors become exit codes."""

import argparse
import subprocess
import sys

import pytest

from butterfly.admin import main as command_line
from butterfly.admin import status
from butterfly.admin.exits import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, UsageError
from butterfly_core.errors import ButterflyError, ConfigError, Unreachable

HEAVY = {
    *("torch", "transformers", "aiohttp", "boto3", "botocore", "pydantic", "rich", "pynvml"),
    *("asyncio", "http.client", "butterfly.config", "butterfly_weights", "butterfly_wire"),
}


def modules_after(*words: str) -> set[str]:
    ask = (
        "import sys; from butterfly.admin.main import main\n"
        f"try: main({list(words)!r})\nexcept SystemExit: pass\n"
        f"print('loaded:', *({HEAVY!r} & set(sys.modules)))"
    )
    heard = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return set(heard.stdout.rpartition("loaded:")[2].split())


def test_help_loads_nothing_heavy() -> None:
    assert modules_after("--help") == set()


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_help_of_a_command_never_loads_what_computes_or_serves(command: str) -> None:
    assert modules_after(command, "--help").isdisjoint(
        {"torch", "transformers", "aiohttp", "boto3"}
    )


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main([command, "--help"])

    assert ended.value.code == EXIT_OK
    assert command_line.COMMANDS[command][:20] in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["nope"], ["status", "--nope"], ["--nope"]])
def test_wrong_usage_ends_with_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line.main(words)

    assert ended.value.code == EXIT_USAGE
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("say which"), EXIT_USAGE),
        (ConfigError("no such key"), EXIT_USAGE),
        (Unreachable("nobody there"), EXIT_FAILED),
        (ButterflyError("something"), EXIT_FAILED),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: ButterflyError,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(status, "run", fail)

    assert command_line.main(["status"]) == code
    assert capsys.readouterr().err == f"butterfly-admin: {error}\n"


def test_ctrl_c_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "run", interrupted)

    assert command_line.main(["status"]) == EXIT_INTERRUPTED
