"""Making and changing the secret's file by hand."""

import shutil
from pathlib import Path

import pytest

from butterfly.admin import secret
from butterfly.admin.exits import EXIT_OK, EXIT_USAGE
from butterfly.admin.main import main
from butterfly_wire.credentials import SecretFile
from butterfly_wire.secret import load_secret
from butterfly_wire.secret_file import STAGES


def words(path: Path) -> list[str]:
    found = load_secret(path)
    return [value.decode() for value in found.accepted]


def test_a_made_file_is_its_owner_s_alone_and_is_not_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.secret"

    assert main(["secret", "create", str(path)]) == EXIT_OK

    assert path.stat().st_mode & 0o777 == 0o600
    shown = capsys.readouterr()
    assert words(path)[0] not in shown.out + shown.err


def test_a_dash_prints_a_secret_for_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["secret", "create", "-"]) == EXIT_OK

    assert len(bytes.fromhex(capsys.readouterr().out.strip())) == 32


def test_a_file_that_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cluster.secret"
    path.write_text("kept")

    assert main(["secret", "create", str(path)]) == EXIT_USAGE

    assert path.read_text() == "kept"
    assert "secret rotate" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["secret", "create", str(tmp_path / "no" / "secret")]) == EXIT_USAGE

    assert "No such file" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_three_steps_replace_the_secret_and_say_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.secret"
    main(["secret", "create", str(path)])
    (old,) = words(path)
    capsys.readouterr()

    main(["secret", "rotate", "--stage", "add", str(path)])
    assert words(path)[0] == old
    new = words(path)[1]
    assert "--stage switch" in capsys.readouterr().out

    main(["secret", "rotate", "--stage", "switch", str(path)])
    assert words(path) == [new, old]
    assert "--stage finish" in capsys.readouterr().out

    main(["secret", "rotate", "--stage", "finish", str(path)])
    assert words(path) == [new]
    shown = capsys.readouterr()
    assert not {old, new} & set((shown.out + shown.err).split())
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["cluster.secret"]


def test_every_step_prints_the_fingerprints_that_status_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.secret"
    main(["secret", "create", str(path)])
    for stage, count in (("add", 2), ("switch", 2), ("finish", 1)):
        capsys.readouterr()
        main(["secret", "rotate", "--stage", stage, str(path)])

        lines = capsys.readouterr().out.splitlines()[-count:]
        loaded = SecretFile(path).load()
        assert [line.split()[0] for line in lines] == list(loaded.accepts)
        assert [line.split()[0] for line in lines if "mints" in line] == [loaded.mints]


def test_add_says_that_its_file_is_copied_because_each_run_draws_another_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    main(["secret", "create", str(one)])
    shutil.copy(one, other)

    main(["secret", "rotate", "--stage", "add", str(one)])
    main(["secret", "rotate", "--stage", "add", str(other)])

    assert words(one)[1] != words(other)[1]
    assert "Do not run this stage on another node" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("done", "stage", "advice"),
    [
        ([], "switch", "begin with: add"),
        ([], "finish", "begin with: add"),
        (["add"], "add", "next step is switch"),
        (["add"], "finish", "next step is switch"),
        (["add", "switch"], "switch", "next step is finish"),
        (["add", "switch"], "add", "next step is finish"),
        (["add", "switch", "finish"], "finish", "begin with: add"),
    ],
)
def test_a_step_out_of_order_changes_nothing_and_names_the_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], done: list[str], stage: str, advice: str
) -> None:
    path = tmp_path / "cluster.secret"
    main(["secret", "create", str(path)])
    for step in done:
        main(["secret", "rotate", "--stage", step, str(path)])
    before = path.read_bytes()

    assert main(["secret", "rotate", "--stage", stage, str(path)]) == EXIT_USAGE

    assert advice in capsys.readouterr().err
    assert path.read_bytes() == before


def test_two_secrets_of_unknown_order_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.secret"
    path.write_text("o" * 20 + "\n" + "n" * 20 + "\n")
    path.chmod(0o600)

    assert main(["secret", "rotate", "--stage", "switch", str(path)]) == EXIT_USAGE

    assert "does not say which is the new one" in capsys.readouterr().err


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / "link"
    main(["secret", "create", str(path)])
    link.symlink_to(path)

    assert main(["secret", "rotate", "--stage", "add", str(link)]) == EXIT_OK

    assert link.is_symlink()
    assert len(words(path)) == 2


def test_the_command_knows_the_stages_of_the_file() -> None:
    assert secret.STAGES == STAGES
