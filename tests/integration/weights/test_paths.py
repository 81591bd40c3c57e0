"""The ways out of the house: HTTPS with a certificate authority of one's own, and proxies."""

import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from butterfly_core.errors import SourceError
from butterfly_core.layers import all_parts
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.loader import Loader
from butterfly_weights.source import SourceOptions, open_source
from tests.support.fault_server import PLACE, FaultServer, fault_server


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that is its own authority, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path / "server.pem"
    path.write_bytes(built.public_bytes(serialization.Encoding.PEM) + secret)
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def load(url: str, options: SourceOptions) -> int:
    source = open_source("s3", PLACE, endpoint_url=url, options=options)
    try:
        return len(Loader(source, read_checkpoint(source)).load(all_parts(4)).tensors)
    finally:
        source.close()


def test_https_works_with_the_given_authority_and_not_without(
    folder: Path, certificate: Path, tls: ssl.SSLContext
) -> None:
    with fault_server(folder, tls=tls) as server:
        assert load(server.url, SourceOptions(ca_file=certificate)) == 39
        untrusting = open_source("s3", PLACE, endpoint_url=server.url)
        with pytest.raises(SourceError, match=r"certificate is not trusted.*AWS_CA_BUNDLE"):
            untrusting.stat("config.json")
        untrusting.close()


def test_http_goes_through_a_proxy_with_its_password(server: FaultServer) -> None:
    proxy = server.url.replace("http://", "http://me:p%40ss@")

    assert load("http://bucket.invalid:9000", SourceOptions(proxy_url=proxy)) == 39


def test_https_goes_through_a_proxy_unread(
    folder: Path, certificate: Path, tls: ssl.SSLContext, server: FaultServer
) -> None:
    with fault_server(folder, tls=tls) as secure:
        options = SourceOptions(proxy_url=server.url, ca_file=certificate)

        assert load(secure.url, options) == 39

    assert {asked.method for asked in server.asked} == {"CONNECT"}


def test_the_environment_names_a_proxy_and_who_is_reached_without(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("http_proxy", server.url)
    assert load("http://bucket.invalid:9000", SourceOptions()) == 39

    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert load(server.url, SourceOptions()) == 39
