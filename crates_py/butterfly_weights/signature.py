"""``butterfly.manifest.sig``: who published a model, as an OpenSSF model-signing bundle. Pure but
for reading key files.

The bundle (Sigstore's format around a DSSE envelope with an in-toto statement) lists SHA-256 of
the manifest and the small files; tensors are covered through the manifest, so nobody hashes the
whole model for it. Signatures by an elliptic-curve key, or by a certificate's key, are verified
here with ``cryptography`` alone; a node trusts keys, not authorities.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from butterfly_core.errors import ConfigError, ModelError, VerificationFailed
from butterfly_weights.safetensors_header import parse_json_object

SIGNATURE_NAME: Final = "butterfly.manifest.sig"
SIGNATURE_BYTES_MAX: Final = 1 << 20
KEY_FILE_BYTES_MAX: Final = 1 << 20
_BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD: Final = "application/vnd.in-toto+json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "https://model_signing/signature/v1.0"
_HASHES: Final[Mapping[str, type[hashes.HashAlgorithm]]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
_PEM: Final = re.compile(
    rb"-----BEGIN (PUBLIC KEY|CERTIFICATE)-----[^-]{1,65536}-----END \1-----\s*"
)
_HEX: Final = re.compile(r"[0-9a-f]{64}")

TrustedKeys = Mapping[str, ec.EllipticCurvePublicKey]
"""By ``key_id_of``."""


class SignatureRejected(VerificationFailed):
    """The signature is missing, damaged, of other bytes, or of nobody who is trusted."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.object_name = SIGNATURE_NAME


@dataclass(frozen=True, slots=True)
class Signature:
    """What a bundle says; nothing of it is proven yet. ``hint`` names the key, ``certificate``
    holds it; both are None for an identity of Sigstore."""

    payload: bytes
    signature: bytes
    hint: str | None
    certificate: x509.Certificate | None
    digests: Mapping[str, str]


def key_id_of(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 (hex) of the key as PEM, as model-signing names keys."""
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def load_trusted_keys(paths: Iterable[Path]) -> TrustedKeys:
    """Public keys of PEM files, and those of certificates in them. Raises ConfigError."""
    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    for path in paths:
        try:
            with path.open("rb") as file:
                content = file.read(KEY_FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(f"trusted key {path} cannot be read: {error.strerror}") from None
        blocks = list(_PEM.finditer(content[:KEY_FILE_BYTES_MAX]))
        if not blocks or len(content) > KEY_FILE_BYTES_MAX:
            raise ConfigError(
                f"trusted key {path} holds no PUBLIC KEY or CERTIFICATE in PEM format (make one "
                "with: openssl ec -in key.pem -pubout)"
            )
        for block in blocks:
            key = _key_of_pem(block[0], path)
            keys[key_id_of(key)] = key
    return keys


def _key_of_pem(pem: bytes, path: Path) -> ec.EllipticCurvePublicKey:
    try:
        is_certificate = b"BEGIN CERTIFICATE" in pem
        key = (
            x509.load_pem_x509_certificate(pem).public_key()
            if is_certificate
            else load_pem_public_key(pem)
        )
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"trusted key {path} is damaged: {error}") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise ConfigError(
            f"trusted key {path} is not on one of the curves {', '.join(_HASHES)}, which "
            "model-signing uses"
        )
    return key


def parse_signature(data: bytes) -> Signature:
    """Read a bundle. Raises SignatureRejected for anything but one of model-signing."""
    try:
        bundle = parse_json_object(data, SIGNATURE_NAME)
        envelope, material = bundle["dsseEnvelope"], bundle["verificationMaterial"]
        (signed,) = envelope["signatures"]
        if (bundle["mediaType"], envelope["payloadType"]) != (_BUNDLE, _PAYLOAD):
            raise ValueError(f"it is {bundle['mediaType']!r}, not {_BUNDLE!r}")
        payload = _base64(envelope["payload"])
        hint, certificate = _signer(material)
        statement = parse_json_object(payload, f"the statement in {SIGNATURE_NAME}")
        return Signature(payload, _base64(signed["sig"]), hint, certificate, _digests_of(statement))
    except ModelError as error:
        raise SignatureRejected(str(error)) from None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SignatureRejected(
            f"{SIGNATURE_NAME} is no signature that model-signing makes: {error!r}; sign the "
            "model again with butterfly-admin manifest sign"
        ) from None


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from None


def _signer(material: Mapping[str, Any]) -> tuple[str | None, x509.Certificate | None]:
    if "publicKey" in material:
        hint = material["publicKey"]["hint"]
        if not _HEX.fullmatch(hint):
            raise ValueError("its key is not named by SHA-256")
        return hint, None
    if "x509CertificateChain" in material:
        first = material["x509CertificateChain"]["certificates"][0]
        return None, x509.load_der_x509_certificate(_base64(first["rawBytes"]))
    return None, None


def _digests_of(statement: Mapping[str, Any]) -> Mapping[str, str]:
    """SHA-256 (hex) by file name, as the statement lists them."""
    predicate = statement["predicate"]
    kinds = (statement["_type"], statement["predicateType"], predicate["serialization"]["method"])
    if kinds != (_STATEMENT, _PREDICATE, "files"):
        raise ValueError(f"it states {kinds}")
    found: dict[str, str] = {}
    whole = hashlib.sha256()
    for resource in predicate["resources"]:
        name, digest = resource["name"], resource["digest"]
        if resource["algorithm"] != "sha256" or not _HEX.fullmatch(digest) or name in found:
            raise ValueError(f"{name!r} is not listed once with its SHA-256")
        found[name] = digest
        whole.update(bytes.fromhex(digest))
    (subject,) = statement["subject"]
    if subject["digest"]["sha256"] != whole.hexdigest():
        raise ValueError("its subject is not the digest of what it lists")
    return found


def check_files(
    signature: Signature, contents: Mapping[str, bytes], known: Collection[str]
) -> None:
    """Refuse when the signature is not of exactly these contents; it may list files beside the
    ``known`` ones (the shards), which the manifest covers. Raises SignatureRejected."""
    signed = {name: digest for name, digest in signature.digests.items() if name in known}
    seen = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    odd = sorted(n for n in signed.keys() | seen.keys() if signed.get(n) != seen.get(n))
    if odd:
        name = odd[0]
        raise SignatureRejected(
            f"{SIGNATURE_NAME} is not of these files: {name} has the SHA-256 "
            f"{seen.get(name, 'of no file')}, signed is {signed.get(name, 'none')}"
            f"{f', and {len(odd) - 1} more differ' if odd[1:] else ''}; restore the files, or "
            "sign again what was changed on purpose"
        )


def check_key(signature: Signature, trusted: TrustedKeys) -> str:
    """The id of the trusted key that made the signature. Raises SignatureRejected."""
    key_id, certificate = signature.hint, signature.certificate
    if certificate is not None:
        found = certificate.public_key()
        key_id = key_id_of(found) if isinstance(found, ec.EllipticCurvePublicKey) else None
    if key_id is None:
        raise SignatureRejected(
            f"{SIGNATURE_NAME} names an identity and not a key: a node checks keys only; look at "
            "it with butterfly-admin manifest verify --identity, or sign with a key"
        )
    if key_id not in trusted:
        known = ", ".join(sorted(known[:16] for known in trusted)) or "none"
        raise SignatureRejected(
            f"{SIGNATURE_NAME} is by the key {key_id[:16]}, which is not trusted here (trusted: "
            f"{known}); if you trust its owner, add the public key to trusted_keys"
        )
    key = trusted[key_id]
    try:
        key.verify(
            signature.signature, _pae(signature.payload), ec.ECDSA(_HASHES[key.curve.name]())
        )
    except InvalidSignature:
        raise SignatureRejected(
            f"{SIGNATURE_NAME} is forged or damaged: the key {key_id[:16]} did not make it; "
            "restore it, or sign the model again"
        ) from None
    return key_id


def _pae(payload: bytes) -> bytes:
    """What a DSSE signature is over."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)
