"""The operator's files: what is refused before any peer sees it, and by which name."""

import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from butterfly_core.errors import ConfigError
from butterfly_core.ids import NodeId
from butterfly_wire.credentials import CertificateFiles
from butterfly_wire.identity import TlsIdentity
from tests.support.certificates import NOW, OperatorAuthority, write_files
from tests.unit.wire.test_identity import handshake

ANNA, BERT = NodeId("a" * 32), NodeId("b" * 32)
LAB = OperatorAuthority()


def identity(files: CertificateFiles, node_id: NodeId = ANNA) -> TlsIdentity:
    return TlsIdentity(files.load(), node_id)


def refusal(files: CertificateFiles, node_id: NodeId = ANNA) -> str:
    with pytest.raises(ConfigError) as refused:
        identity(files, node_id)
    return str(refused.value)


def test_two_nodes_of_one_authority_meet_over_tls_1_3(tmp_path: Path) -> None:
    anna = identity(write_files(tmp_path / "a", LAB.pem, LAB.sign()))
    bert = identity(write_files(tmp_path / "b", LAB.pem, LAB.sign()), BERT)

    server, client = handshake(anna.server_context(), bert.client_context())

    assert server.version() == "TLSv1.3"
    assert bert.peer_id(client.getpeercert()) is None


def test_a_certificate_that_names_its_node_proves_it(tmp_path: Path) -> None:
    anna = identity(write_files(tmp_path / "a", LAB.pem, LAB.sign()))
    named = LAB.sign(uris=[f"butterfly:node:{BERT}", "https://example.com/"])
    bert = identity(write_files(tmp_path / "b", LAB.pem, named), BERT)

    server, _ = handshake(anna.server_context(), bert.client_context())

    assert anna.peer_id(server.getpeercert()) == BERT


def test_a_chain_with_a_certificate_between_is_accepted(tmp_path: Path) -> None:
    middle = OperatorAuthority("middle", LAB)
    leaf, key = middle.sign()
    anna = identity(write_files(tmp_path / "a", LAB.pem, (leaf + middle.pem, key)))
    bert = identity(write_files(tmp_path / "b", LAB.pem, LAB.sign()))

    handshake(anna.server_context(), bert.client_context())


def test_an_authority_below_an_unlisted_root_may_be_believed_alone(tmp_path: Path) -> None:
    middle = OperatorAuthority("middle", LAB)
    anna = identity(write_files(tmp_path / "a", middle.pem, middle.sign()))
    bert = identity(write_files(tmp_path / "b", middle.pem, middle.sign()))
    stranger = identity(write_files(tmp_path / "c", LAB.pem, LAB.sign()))

    handshake(anna.server_context(), bert.client_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(anna.server_context(), stranger.client_context())


def test_both_authorities_are_accepted_while_one_replaces_the_other(tmp_path: Path) -> None:
    new = OperatorAuthority("new authority")
    before = identity(write_files(tmp_path / "a", LAB.pem + new.pem, LAB.sign()))
    after = identity(write_files(tmp_path / "b", LAB.pem + new.pem, new.sign()))

    handshake(before.server_context(), after.client_context())
    handshake(after.server_context(), before.client_context())


def test_an_expired_certificate_is_refused_with_its_dates(tmp_path: Path) -> None:
    until = NOW - timedelta(minutes=5)
    files = write_files(tmp_path, LAB.pem, LAB.sign(since=NOW - timedelta(days=9), until=until))

    text = refusal(files)

    assert f"{files.certificate} has expired" in text
    assert f"to {until:%Y-%m-%d %H:%M:%S} UTC" in text


def test_a_certificate_of_tomorrow_is_refused_with_its_dates(tmp_path: Path) -> None:
    since = NOW + timedelta(days=1)
    files = write_files(tmp_path, LAB.pem, LAB.sign(since=since))

    text = refusal(files)

    assert f"{files.certificate} is not yet valid" in text
    assert f"from {since:%Y-%m-%d %H:%M:%S}" in text
    assert "clock" in text


@pytest.mark.parametrize(
    ("usage", "missing"),
    [
        (ExtendedKeyUsageOID.SERVER_AUTH, "clientAuth"),
        (ExtendedKeyUsageOID.CLIENT_AUTH, "serverAuth"),
        (ExtendedKeyUsageOID.CODE_SIGNING, "serverAuth and clientAuth"),
    ],
)
def test_a_certificate_for_half_of_the_use_is_refused(
    tmp_path: Path, usage: ExtendedKeyUsageOID, missing: str
) -> None:
    files = write_files(tmp_path, LAB.pem, LAB.sign(usages=[usage]))  # type: ignore[list-item]

    assert f"{files.certificate} may not be used for {missing}" in refusal(files)


def test_a_certificate_without_a_limited_use_is_accepted(tmp_path: Path) -> None:
    assert identity(write_files(tmp_path, LAB.pem, LAB.sign(usages=None)))


def test_another_authority_s_certificate_is_refused_before_a_peer_does(tmp_path: Path) -> None:
    stranger = OperatorAuthority("stranger")

    text = refusal(write_files(tmp_path, LAB.pem, stranger.sign(name="mallory")))

    assert "not accepted by the authorities in ca_file" in text
    assert "mallory" in text


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    files = write_files(tmp_path, LAB.pem, (LAB.sign()[0], LAB.sign()[1]))

    assert f"{files.private_key} does not belong to" in refusal(files)


def test_a_key_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    files = write_files(tmp_path, LAB.pem, LAB.sign())
    files.private_key.chmod(0o640)

    assert f"chmod 600 {files.private_key}" in refusal(files)


def test_an_encrypted_key_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    files = write_files(tmp_path, LAB.pem, LAB.sign(), password=b"hunter2")

    assert "is encrypted" in refusal(files)


def test_a_certificate_of_another_node_is_refused_with_both_ids(tmp_path: Path) -> None:
    files = write_files(tmp_path, LAB.pem, LAB.sign(uris=[f"butterfly:node:{BERT}"]))

    text = refusal(files, ANNA)

    assert BERT in text
    assert f"butterfly:node:{ANNA}" in text


@pytest.mark.parametrize(
    ("uris", "said"),
    [
        ([f"butterfly:node:{ANNA}", f"butterfly:node:{BERT}"], "names 2 nodes"),
        (["butterfly:node:anna"], "butterfly:node:anna"),
    ],
)
def test_a_certificate_that_names_no_single_node_is_refused(
    tmp_path: Path, uris: list[str], said: str
) -> None:
    assert said in refusal(write_files(tmp_path, LAB.pem, LAB.sign(uris=uris)))


def test_a_node_s_certificate_is_no_authority(tmp_path: Path) -> None:
    shown = LAB.sign()

    assert "no certificate authority" in refusal(write_files(tmp_path, shown[0], shown))


@pytest.mark.parametrize("key", ["ca", "certificate", "private_key"])
@pytest.mark.parametrize("content", [None, b"", b"no PEM", b"x" * 300_000, b"\xff\x00"])
def test_a_file_that_is_missing_or_garbled_is_named(
    tmp_path: Path, key: str, content: bytes | None
) -> None:
    files = write_files(tmp_path, LAB.pem, LAB.sign())
    path: Path = getattr(files, key)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)

    text = refusal(files)

    assert str(path) in text
    assert f"{key}_file" in text


def test_a_private_key_is_never_shown(tmp_path: Path) -> None:
    credentials = write_files(tmp_path, LAB.pem, LAB.sign()).load()

    assert "PRIVATE" not in repr(credentials.show(ANNA, NOW))
