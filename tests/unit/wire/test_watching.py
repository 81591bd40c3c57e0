"""Files that change while they are in use. A look is a call here; no clock."""

import errno
import os
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtensionOID, ObjectIdentifier

from butterfly_core.ids import NodeId
from butterfly_wire.credentials import SecretFile
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.secret import ClusterSecret
from butterfly_wire.watching import CredentialWatch
from tests.support.certificates import NOW, OperatorAuthority, write_files
from tests.unit.wire.test_identity import handshake

ANNA, BERT = NodeId("a" * 32), NodeId("b" * 32)
OLD, NEW = b"o" * 32, b"n" * 32


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    part = path.with_name("part")
    part.write_bytes(content)
    part.chmod(mode)
    part.rename(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "secret"
    replace_file(made, OLD)
    return made


def meets(watch: CredentialWatch, secret: bytes) -> bool:
    other = TlsIdentity(ClusterSecret(secret), BERT)
    try:
        handshake(watch.identity.server_context(), other.client_context())
    except ssl.SSLError:
        return False
    return True


def test_a_changed_secret_is_used_once_it_was_seen_twice(path: Path) -> None:
    watch = CredentialWatch(SecretFile(path), ANNA)
    replace_file(path, NEW)

    watch.look()
    assert meets(watch, OLD)
    watch.look()

    assert meets(watch, NEW)
    assert not meets(watch, OLD)
    assert watch.changes_count == 1


def test_an_unchanged_file_is_not_read_again(path: Path) -> None:
    watch = CredentialWatch(SecretFile(path), ANNA)
    before = watch.identity.server_context()

    for _ in range(5):
        watch.look()

    assert watch.identity.server_context() is before
    assert watch.changes_count == 0


def damage(path: Path) -> None:
    replace_file(path, b"short")


def open_to_all(path: Path) -> None:
    path.chmod(0o644)


@pytest.mark.parametrize("harm", [damage, open_to_all, os.unlink])
def test_a_bad_file_is_a_problem_and_the_old_secret_goes_on(
    path: Path, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    watch = CredentialWatch(SecretFile(path), ANNA)
    assert watch.problem is None
    harm(path)

    for _ in range(4):
        watch.look()

    assert meets(watch, OLD)
    assert watch.problem is not None
    assert str(path) in watch.problem
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    assert "short" not in caplog.text

    replace_file(path, NEW)
    watch.look()
    watch.look()
    assert watch.problem is None
    assert meets(watch, NEW)


def test_a_file_that_could_not_be_opened_for_a_moment_is_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = CredentialWatch(SecretFile(path), ANNA)
    replace_file(path, NEW)

    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as starved:
        starved.setattr(os, "memfd_create", full)
        for _ in range(3):
            watch.look()
    assert watch.problem is not None
    assert "Too many open files" in watch.problem

    watch.look()

    assert watch.problem is None
    assert meets(watch, NEW)


def test_a_file_that_is_still_being_written_is_left_alone(path: Path) -> None:
    watch = CredentialWatch(SecretFile(path), ANNA)
    with path.open("wb") as file:
        for portion in (NEW[:20], NEW[20:24]):
            file.write(portion)
            file.flush()
            watch.look()
        assert meets(watch, OLD)
        file.write(NEW[24:])
    watch.look()
    watch.look()

    assert meets(watch, NEW)


def test_replaced_certificates_are_used_when_all_files_fit_again(tmp_path: Path) -> None:
    lab, new = OperatorAuthority(), OperatorAuthority("new authority")
    files = write_files(tmp_path / "anna", lab.pem, lab.sign())
    watch = CredentialWatch(files, ANNA)
    shown = new.sign()

    files.certificate.write_bytes(shown[0])
    watch.look()
    watch.look()
    assert watch.problem is not None
    assert "does not belong to" in watch.problem

    write_files(tmp_path / "anna", lab.pem + new.pem, shown)
    watch.look()
    watch.look()
    assert watch.problem is None
    assert watch.identity.credentials.mints == "CN=new authority"
    assert watch.identity.credentials.accepts == ("CN=lab authority", "CN=new authority")


@pytest.mark.parametrize("part", [ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.KEY_USAGE])
@pytest.mark.parametrize("place", ["ca", "certificate"])
def test_a_certificate_with_a_part_that_cannot_be_read_is_a_problem_by_the_name_of_its_file(
    tmp_path: Path, part: ObjectIdentifier, place: str
) -> None:
    lab = OperatorAuthority()
    files = write_files(tmp_path / "anna", lab.pem, lab.sign())
    watch = CredentialWatch(files, ANNA)
    broken = lab.sign(junk=part)

    write_files(
        tmp_path / "anna",
        broken[0] if place == "ca" else lab.pem,
        broken if place == "certificate" else lab.sign(),
    )
    watch.look()
    watch.look()

    assert watch.problem is not None
    assert f"{place}_file {getattr(files, place)}" in watch.problem


def test_a_certificate_of_an_unknown_kind_of_key_is_a_problem_by_the_name_of_its_file(
    tmp_path: Path,
) -> None:
    lab = OperatorAuthority()
    files = write_files(tmp_path / "anna", lab.pem, lab.sign())
    watch = CredentialWatch(files, ANNA)
    pem, key = lab.sign()
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    curve = bytes.fromhex("06082a8648ce3d030107")  # prime256v1; the other one has no name
    unknown = der.replace(curve, curve[:-1] + b"\x7f")

    write_files(tmp_path / "anna", lab.pem, (ssl.DER_cert_to_PEM_cert(unknown).encode(), key))
    watch.look()
    watch.look()

    assert watch.problem is not None
    assert f"certificate_file {files.certificate} is not what it must be" in watch.problem


def test_a_certificate_that_ends_soon_is_a_problem_before_it_does(tmp_path: Path) -> None:
    lab = OperatorAuthority()
    shown = lab.sign(until=NOW + timedelta(hours=30))
    watch = CredentialWatch(write_files(tmp_path, lab.pem, shown), ANNA)

    assert watch.problem is not None
    assert "expires soon" in watch.problem


def test_a_certificate_that_begins_in_the_future_of_a_corrected_clock_is_a_problem(
    tmp_path: Path,
) -> None:
    lab, clock = OperatorAuthority(), [NOW]
    files = write_files(tmp_path, lab.pem, lab.sign(since=NOW - timedelta(hours=1)))
    watch = CredentialWatch(files, ANNA, clock=lambda: clock[0])
    assert watch.problem is None

    clock[0] = NOW - timedelta(days=2)

    assert watch.problem is not None
    assert "not yet valid" in watch.problem


def test_a_minted_certificate_is_no_problem_after_the_clock_was_set_back(path: Path) -> None:
    clock = [NOW]
    watch = CredentialWatch(SecretFile(path), ANNA, clock=lambda: clock[0])

    clock[0] = NOW - timedelta(days=100)

    assert watch.problem is None
