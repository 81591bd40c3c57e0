"""Readers of proofs and signatures for ``targets.py``, and bytes that they accept."""

import json
from base64 import b64encode
from hashlib import sha256
from typing import Final

from butterfly_weights.proofs import parse_proof
from butterfly_weights.signature import SignatureRejected, parse_signature

_PATH = ["00" * 32]
_PROOF = {
    "format": "butterfly.proof",
    "version": 1,
    "tensor": "t",
    "dtype": "U8",
    "shape": [3],
    "bytes": 3,
    "leaf": 0,
    "leaf_path": [],
    "tensor_sides": "L",
    "tensor_path": _PATH,
    "files": "00" * 32,
    "part_path": _PATH,
}
_STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [{"name": "m", "digest": {"sha256": sha256(bytes(32)).hexdigest()}}],
    "predicateType": "https://model_signing/signature/v1.0",
    "predicate": {
        "resources": [{"name": "config.json", "algorithm": "sha256", "digest": "00" * 32}],
        "serialization": {"method": "files"},
    },
}


def _bundle(statement: bytes) -> bytes:
    envelope = {
        "payload": b64encode(statement).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": "AA==", "keyid": ""}],
    }
    whole = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": "00" * 32}},
        "dsseEnvelope": envelope,
    }
    return json.dumps(whole).encode()


def read_signature(data: bytes) -> None:
    """As a bundle, and as the statement in a sound one."""
    for content in (data, _bundle(data)):
        try:
            parse_signature(content)
        except SignatureRejected:
            continue


def read_proof(data: bytes) -> None:
    """No proof proves a root that nobody knows."""
    if parse_proof(data).proves_digest(bytes(32), "f" * 64, 2):
        raise AssertionError("a made-up proof proves something")


PROOFS: Final = (json.dumps(_PROOF).encode(),)
SIGNATURES: Final = (_bundle(json.dumps(_STATEMENT).encode()), b"{}")
