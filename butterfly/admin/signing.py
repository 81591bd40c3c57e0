"""Signs manifests, and checks who signed one: the part of ``manifest`` that knows model-signing.

OpenSSF's ``model-signing`` (``pip install 'butterfly[sign]'``) makes signatures, and follows chains
of certificates and Sigstore identities. It wants a folder, so it gets a temporary one with the
manifest and the small files. Signatures by a key are checked without it.
"""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from butterfly.admin.exits import UsageError
from butterfly_core.errors import StorageError, UserError

if TYPE_CHECKING:
    from butterfly_weights.source import Source

PASSWORD_BYTES_MAX = 4096


def add_sign_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key",
        type=Path,
        required=True,
        metavar="PEM",
        help="private key on P-256, P-384 or P-521 (openssl ecparam -name prime256v1 -genkey)",
    )
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE", help="whose first line opens the key"
    )
    parser.add_argument(
        "--certificate", type=Path, metavar="PEM", help="the key's certificate, to be put in"
    )
    parser.add_argument(
        "--chain",
        type=Path,
        action="append",
        default=[],
        metavar="PEM",
        help="certificates between it and the authority (may be given again)",
    )


def add_trust_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--trusted-key",
        type=Path,
        action="append",
        default=[],
        metavar="PEM",
        help="the signature must be by one of these public keys (may be given again)",
    )
    parser.add_argument(
        "--trusted-certificate",
        type=Path,
        action="append",
        default=[],
        metavar="PEM",
        help="the signature's certificate must lead to one of these (may be given again)",
    )
    parser.add_argument("--identity", help="the signature must be by this Sigstore identity")
    parser.add_argument("--identity-provider", metavar="URL", help="who vouches for that identity")
    parser.add_argument(
        "--trust-config",
        type=Path,
        metavar="FILE",
        help="Sigstore's trusted roots, so that nothing is asked over the network",
    )


def wants_signature(arguments: argparse.Namespace) -> bool:
    """True when a way of trusting was named. Raises UsageError when half of one was."""
    if bool(arguments.identity) != bool(arguments.identity_provider):
        raise UsageError("--identity and --identity-provider belong together")
    if arguments.trust_config and not arguments.identity:
        raise UsageError("--trust-config is for --identity")
    ways = (arguments.trusted_key, arguments.trusted_certificate, arguments.identity)
    if sum(bool(way) for way in ways) > 1:
        raise UsageError("name one of --trusted-key, --trusted-certificate and --identity")
    return any(ways)


def sign(source: "Source", arguments: argparse.Namespace) -> str:
    """Write the signature beside the model. Returns what was signed with, for people.

    Raises UsageError, UserError for a key that cannot be used, ModelError, SourceError.
    """
    from butterfly_weights.checkpoint import read_checkpoint
    from butterfly_weights.signature import SIGNATURE_NAME, check_files, parse_signature
    from butterfly_weights.signed import SIGNED_FILES, signed_contents

    config = _signer(arguments)
    contents = signed_contents(source, read_checkpoint(source))
    with _folder(contents) as folder:
        bundle = folder.parent / "bundle"
        config.sign(folder, bundle)
        made = bundle.read_bytes()
    signature = parse_signature(made)
    check_files(signature, contents, SIGNED_FILES)
    source.write_small(SIGNATURE_NAME, made)
    if signature.hint:
        return f"key {signature.hint}"
    assert signature.certificate is not None
    return f"certificate {signature.certificate.subject.rfc4514_string()}"


def _signer(arguments: argparse.Namespace) -> Any:
    if arguments.chain and not arguments.certificate:
        raise UsageError("--chain goes with --certificate")
    if arguments.certificate and arguments.password_file:
        raise UsageError("model-signing opens no key with a password for a certificate")
    config = _model_signing("signing").Config()
    try:
        if arguments.certificate:
            return config.use_certificate_signer(
                private_key=arguments.key,
                signing_certificate=arguments.certificate,
                certificate_chain=arguments.chain or [arguments.certificate],
            )
        password = _password(arguments.password_file)
        return config.use_elliptic_key_signer(private_key=arguments.key, password=password)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{arguments.key} cannot be signed with: {error}") from error


def _password(path: Path | None) -> bytes | None:
    if path is None:
        return None
    with path.open("rb") as file:
        return file.readline(PASSWORD_BYTES_MAX).rstrip(b"\r\n")


def check(
    arguments: argparse.Namespace, bundle: bytes | None, contents: Mapping[str, bytes]
) -> str | None:
    """Who signed these contents, for people; None when nobody did and nobody must have.

    Raises SignatureRejected, UsageError, ConfigError.
    """
    from butterfly_weights.signature import (
        SIGNATURE_NAME,
        SignatureRejected,
        check_files,
        check_key,
        load_trusted_keys,
        parse_signature,
    )
    from butterfly_weights.signed import SIGNED_FILES

    wanted = wants_signature(arguments)
    if bundle is None:
        if wanted:
            raise SignatureRejected(
                f"there is no {SIGNATURE_NAME}; make one with butterfly-admin manifest sign"
            )
        return None
    signature = parse_signature(bundle)
    check_files(signature, contents, SIGNED_FILES)
    if arguments.trusted_key:
        key_id = check_key(signature, load_trusted_keys(arguments.trusted_key))
        return f"by the trusted key {key_id}"
    if wanted:
        return _check_with_model_signing(arguments, bundle, contents)
    who = f"the key {signature.hint}" if signature.hint else "a certificate or an identity"
    return f"by {who} as it says: name whom you trust (--trusted-key) to have that checked"


def _check_with_model_signing(
    arguments: argparse.Namespace, bundle: bytes, contents: Mapping[str, bytes]
) -> str:
    from butterfly_weights.signature import SIGNATURE_NAME, SignatureRejected

    config = _verifier(_model_signing("verifying").Config(), arguments)
    try:
        with _folder(contents) as folder:
            (folder.parent / "bundle").write_bytes(bundle)
            config.verify(folder, folder.parent / "bundle")
    except _rejections() as error:
        raise SignatureRejected(
            f"{SIGNATURE_NAME} is by nobody whom you trust: {str(error) or type(error).__name__}"
        ) from error
    if arguments.identity:
        return f"by {arguments.identity}, vouched for by {arguments.identity_provider}"
    return f"by a certificate of {', '.join(map(str, arguments.trusted_certificate))}"


def _verifier(config: Any, arguments: argparse.Namespace) -> Any:
    from sigstore.errors import Error

    try:
        if not arguments.identity:
            return config.use_certificate_verifier(certificate_chain=arguments.trusted_certificate)
        return config.use_sigstore_verifier(
            identity=arguments.identity,
            oidc_issuer=arguments.identity_provider,
            trust_config=arguments.trust_config,
        )
    except (OSError, ValueError, Error) as error:
        raise UserError(f"what is to be trusted cannot be used: {error}") from error


def _rejections() -> tuple[type[Exception], ...]:
    """What model-signing raises for a signature that it does not accept."""
    from cryptography.exceptions import InvalidSignature
    from OpenSSL.crypto import X509StoreContextError
    from sigstore.errors import Error

    return (Error, X509StoreContextError, InvalidSignature, ValueError, KeyError, TypeError)


def _model_signing(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        raise UsageError(
            f"this needs OpenSSF's model-signing: pip install 'butterfly[sign]' ({error})"
        ) from error


@contextmanager
def _folder(contents: Mapping[str, bytes]) -> Iterator[Path]:
    """These files alone in a folder called ``model``; as large as what a node reads of them."""
    import tempfile  # it loads much, and most commands need none of it

    try:
        with tempfile.TemporaryDirectory(prefix="butterfly-sign-") as place:
            folder = Path(place) / "model"
            folder.mkdir()
            for name, content in contents.items():
                (folder / name).write_bytes(content)
            yield folder
    except OSError as error:
        raise StorageError(f"a temporary folder cannot be written: {error}") from error
