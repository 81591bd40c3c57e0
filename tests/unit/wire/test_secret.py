"""The secret file: what is accepted, and that nothing of it is shown."""

from pathlib import Path

import pytest

from butterfly_core.errors import ConfigError
from butterfly_wire.secret import ClusterSecret, derive_key, insecure_secret, load_secret

OLD, NEW = b"o" * 16, b"n" * 40


def secret_file(directory: Path, content: bytes, mode: int = 0o600) -> Path:
    path = directory / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [NEW, NEW + b"\n", b"  " + NEW + b" \r\n\n"])
def test_one_line_is_the_secret(tmp_path: Path, content: bytes) -> None:
    assert load_secret(secret_file(tmp_path, content)) == ClusterSecret(NEW)


def test_the_first_of_two_lines_mints_and_both_are_accepted(tmp_path: Path) -> None:
    found = load_secret(secret_file(tmp_path, NEW + b"\n" + OLD + b"\n"))

    assert found == ClusterSecret(NEW, OLD)
    assert found.accepted == (NEW, OLD)


def test_comments_are_no_secrets(tmp_path: Path) -> None:
    found = load_secret(secret_file(tmp_path, b"# made today\n" + NEW + b"\n  # over\n"))

    assert found == ClusterSecret(NEW)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_a_file_that_others_may_use_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = secret_file(tmp_path, NEW, mode)

    with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
        load_secret(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "0 lines"),
        (b"\n \n", "0 lines"),
        (b"\n".join([NEW, OLD, NEW]), "3 lines"),
        (b"short", "at least 16"),
        (NEW + b"\nshort", "at least 16"),
        (b"x" * 5000, "longer than 4096"),
    ],
)
def test_a_malformed_file_is_refused_by_name(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = secret_file(tmp_path, content)

    with pytest.raises(ConfigError, match=complaint) as refused:
        load_secret(path)
    assert str(path) in str(refused.value)
    assert "short" not in str(refused.value)


def test_a_missing_file_is_refused_by_name_with_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*butterfly-admin secret create"):
        load_secret(tmp_path / "none")


def test_a_directory_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path)):
        load_secret(tmp_path)


def test_a_secret_is_never_shown() -> None:
    shown = repr(ClusterSecret(NEW, OLD)) + str(ClusterSecret(NEW, OLD))

    assert "nnn" not in shown
    assert "ooo" not in shown


def test_an_insecure_secret_follows_the_name() -> None:
    assert insecure_secret("x") == insecure_secret("x")
    assert insecure_secret("x") != insecure_secret("y")


def test_keys_for_different_purposes_differ() -> None:
    assert derive_key(NEW, b"a") == derive_key(NEW, b"a")
    assert len({derive_key(NEW, b"a"), derive_key(NEW, b"b"), derive_key(OLD, b"a")}) == 3
