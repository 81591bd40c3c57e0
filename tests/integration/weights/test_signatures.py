"""Signatures: what model-signing makes we accept, what it refuses we refuse, and the other way."""

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from model_signing import signing, verifying

from butterfly.admin.main import main
from butterfly_core.errors import ButterflyError, ConfigError
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.manifest import MANIFEST_NAME
from butterfly_weights.proving import create_manifest, write_manifest
from butterfly_weights.signature import SIGNATURE_NAME, SignatureRejected, load_trusted_keys
from butterfly_weights.signed import Signed, check_signed
from butterfly_weights.small_files import SMALL_FILES
from butterfly_weights.source import open_source
from tests.support.certificates import OperatorAuthority, key_pem

USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
Curve = ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1


def make_key(folder: Path, name: str, curve: Curve | None = None) -> tuple[Path, Path]:
    """A private and a public key, as PEM files."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    private_file, public_file = folder / f"{name}.pem", folder / f"{name}.pub"
    private_file.write_bytes(key_pem(key))
    public_file.write_bytes(public)
    return private_file, public_file


@pytest.fixture
def model(folder: Path) -> Path:
    """A model with its manifest."""
    source = open_source("filesystem", str(folder))
    write_manifest(source, create_manifest(source))
    return folder


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_key(tmp_path, "publisher")


def signed(model: Path, private: Path, *more: str) -> Path:
    assert main(["manifest", "sign", str(model), "--key", str(private), *more]) == 0
    return model / SIGNATURE_NAME


def accepted(model: Path, *public: Path, required: bool = True) -> Signed | None:
    """What a node makes of it."""
    source = open_source("filesystem", str(model))
    checkpoint = read_checkpoint(source)
    return check_signed(source, checkpoint, load_trusted_keys(public), required=required)


def root_of(model: Path) -> str:
    root = json.loads((model / MANIFEST_NAME).read_text())["root"]
    assert isinstance(root, str)
    return root


def upstream_accepts(model: Path, public: Path, tmp_path: Path) -> bool:
    """What model-signing makes of the manifest and the small files."""
    place = tmp_path / "upstream"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in (MANIFEST_NAME, *SMALL_FILES):
        if (model / name).exists():
            shutil.copy(model / name, place / name)
    config = verifying.Config().use_elliptic_key_verifier(public_key=public)
    try:
        config.verify(place, model / SIGNATURE_NAME)
    except Exception:  # noqa: BLE001 - it has no base of its own
        return False
    return True


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_what_is_signed_is_accepted_by_us_and_by_model_signing(
    model: Path, tmp_path: Path, curve: Curve
) -> None:
    private, public = make_key(tmp_path, "other", curve)
    bundle = json.loads(signed(model, private).read_text())

    found = accepted(model, public)

    assert found is not None
    assert found.key_id == bundle["verificationMaterial"]["publicKey"]["hint"]
    assert upstream_accepts(model, public, tmp_path)


def test_a_signature_that_model_signing_made_of_the_whole_folder_is_accepted(
    model: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    config = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.sign(model, tmp_path / "whole.sig")
    (tmp_path / "whole.sig").rename(model / SIGNATURE_NAME)

    assert accepted(model, keys[1]) is not None


def edit_bundle(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        path = model / SIGNATURE_NAME
        bundle = json.loads(path.read_text())
        change(bundle)
        path.write_text(json.dumps(bundle))

    return damage


def edit_payload(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def in_bundle(bundle: dict[str, Any]) -> None:
        envelope = bundle["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        change(statement)
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return edit_bundle(in_bundle)


def append(name: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        with (model / name).open("ab") as file:
            file.write(b"\n")

    return damage


def flip_signature(bundle: dict[str, Any]) -> None:
    envelope = bundle["dsseEnvelope"]["signatures"][0]
    raw = bytearray(base64.b64decode(envelope["sig"]))
    raw[-1] ^= 1
    envelope["sig"] = base64.b64encode(raw).decode()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "manifest changed": append(MANIFEST_NAME),
    "signature flipped": edit_bundle(flip_signature),
    "payload reformatted": edit_payload(lambda statement: None),
    "another digest": edit_payload(
        lambda s: s["predicate"]["resources"][0].update(digest="0" * 64)
    ),
    "a file less": edit_payload(lambda s: s["predicate"]["resources"].pop()),
    "another type": edit_payload(lambda s: s.update(predicateType="https://example.com")),
    "no signature": edit_bundle(lambda b: b["dsseEnvelope"].update(signatures=[])),
    "another key's name": edit_bundle(
        lambda b: b["verificationMaterial"]["publicKey"].update(hint="0" * 64)
    ),
    "another media type": edit_bundle(lambda b: b.update(mediaType="text/plain")),
    "not JSON": lambda model: (model / SIGNATURE_NAME).write_text("{"),
    "empty": lambda model: (model / SIGNATURE_NAME).write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_was_changed_is_refused_by_us_and_by_model_signing(
    model: Path, keys: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    signed(model, keys[0])
    DAMAGES[damage](model)

    with pytest.raises(SignatureRejected, match=r"butterfly\.manifest\.sig"):
        accepted(model, keys[1], required=False)
    assert not upstream_accepts(model, keys[1], tmp_path)


def test_a_strangers_signature_is_refused_with_both_names(
    model: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    _, other = make_key(tmp_path, "stranger")
    signed(model, keys[0])

    (theirs,) = load_trusted_keys([keys[1]])
    (ours,) = load_trusted_keys([other])
    with pytest.raises(
        SignatureRejected, match=f"{theirs[:16]}, which is not trusted.*{ours[:16]}"
    ):
        accepted(model, other)
    assert not upstream_accepts(model, other, tmp_path)
    assert accepted(model, other, keys[1]) == Signed(root_of(model), theirs)


def test_a_model_without_signature_or_manifest_is_refused_when_one_is_required(
    model: Path, keys: tuple[Path, Path]
) -> None:
    with pytest.raises(SignatureRejected, match="require_signature is set"):
        accepted(model, keys[1])
    assert accepted(model, keys[1], required=False) is None
    signed(model, keys[0])
    (model / MANIFEST_NAME).unlink()
    with pytest.raises(SignatureRejected, match=r"has no butterfly\.manifest\.json"):
        accepted(model, keys[1], required=False)


def test_a_new_small_file_needs_a_new_signature(model: Path, keys: tuple[Path, Path]) -> None:
    signed(model, keys[0])
    (model / "chat_template.jinja").write_text("{{ messages }}")
    source = open_source("filesystem", str(model))
    write_manifest(source, create_manifest(source))

    with pytest.raises(SignatureRejected, match="and 1 more differ"):
        accepted(model, keys[1])
    signed(model, keys[0])
    assert accepted(model, keys[1]) is not None


def test_without_trusted_keys_a_signature_must_still_be_of_these_files(
    model: Path, keys: tuple[Path, Path]
) -> None:
    signed(model, keys[0])

    assert accepted(model, required=False) == Signed(root_of(model), None)
    append(MANIFEST_NAME)(model)
    with pytest.raises(SignatureRejected, match="is not of these files"):
        accepted(model, required=False)


def certificates(tmp_path: Path) -> tuple[Path, Path, Path]:
    """An authority's certificate, and a key with a certificate of it that may sign."""
    authority = OperatorAuthority()
    key = ec.generate_private_key(ec.SECP256R1())
    usage = dict.fromkeys(USAGES, False) | {"digital_signature": True}
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "publisher")]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(authority.certificate.not_valid_before_utc)
        .not_valid_after(authority.certificate.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .sign(authority.key, SHA256())
    )
    paths = (tmp_path / "ca.pem", tmp_path / "signer.key", tmp_path / "signer.crt")
    paths[0].write_bytes(authority.pem)
    paths[1].write_bytes(key_pem(key))
    paths[2].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return paths


def test_a_certificates_signature_is_followed_to_its_authority_by_the_command_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ca, key, certificate = certificates(tmp_path)
    foreign = tmp_path / "foreign.pem"
    foreign.write_bytes(OperatorAuthority("another").pem)
    signed(model, key, "--certificate", str(certificate))
    verify = ["manifest", "verify", str(model), "--trusted-certificate"]

    assert main([*verify, str(ca)]) == 0
    assert f"signed by a certificate of {ca}" in capsys.readouterr().out
    assert main([*verify, str(foreign)]) == 1
    assert "by nobody whom you trust" in capsys.readouterr().err
    append(MANIFEST_NAME)(model)
    assert main([*verify, str(ca)]) == 1


def test_a_node_trusts_a_certificates_key_and_not_its_authority(
    model: Path, tmp_path: Path
) -> None:
    ca, key, certificate = certificates(tmp_path)
    signed(model, key, "--certificate", str(certificate))

    assert accepted(model, certificate) is not None
    with pytest.raises(SignatureRejected, match="not trusted here"):
        accepted(model, ca)


def test_a_key_with_a_password_signs(model: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "locked.pem").write_bytes(key_pem(key, b"open sesame"))
    (tmp_path / "password").write_text("open sesame\n")
    sign = ["manifest", "sign", str(model), "--key", str(tmp_path / "locked.pem")]

    assert main([*sign, "--password-file", str(tmp_path / "password")]) == 0
    assert main(sign) == 1


def test_the_command_line_says_who_signed(
    model: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify = ["manifest", "verify", str(model)]
    assert main(verify) == 0
    assert "not signed" in capsys.readouterr().out
    assert main([*verify, "--trusted-key", str(keys[1])]) == 1
    assert "there is no butterfly.manifest.sig" in capsys.readouterr().err
    signed(model, keys[0])

    assert main([*verify, "--trusted-key", str(keys[1]), "--json"]) == 0
    told = capsys.readouterr().out
    report = json.loads(told[told.index("{") :])
    (key_id,) = load_trusted_keys([keys[1]])
    assert report["signed"] == f"by the trusted key {key_id}"
    assert main(verify) == 0
    assert "as it says" in capsys.readouterr().out
    _, other = make_key(tmp_path, "stranger")
    assert main([*verify, "--trusted-key", str(other)]) == 1
    assert "not trusted here" in capsys.readouterr().err


def test_a_signature_by_a_key_is_none_by_an_identity(
    model: Path,
    keys: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    signed(model, keys[0])
    verify = ["manifest", "verify", str(model), "--identity", "someone@example.com"]

    assert main(verify) == 2
    config = tmp_path / "trust.json"
    config.write_text("{}")
    words = ["--identity-provider", "https://example.com", "--trust-config", str(config)]
    assert main([*verify, *words]) == 1
    assert "cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no PUBLIC KEY"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "is damaged"),
        (
            ed25519.Ed25519PrivateKey.generate()
            .public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
            "not on one of the curves",
        ),
    ],
)
def test_a_trusted_key_that_is_none_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "key").write_bytes(content)

    with pytest.raises(ConfigError, match=told):
        load_trusted_keys([tmp_path / "key"])
    with pytest.raises(ButterflyError, match="cannot be read"):
        load_trusted_keys([tmp_path / "nowhere"])
