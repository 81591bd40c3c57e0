"""Whether a source's model is signed by somebody trusted: the signature beside the manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from butterfly_weights.checkpoint import Checkpoint
from butterfly_weights.errors import AccessDenied, NotFound
from butterfly_weights.manifest import MANIFEST_BYTES_MAX, MANIFEST_NAME, parse_manifest
from butterfly_weights.signature import (
    SIGNATURE_BYTES_MAX,
    SIGNATURE_NAME,
    SignatureRejected,
    TrustedKeys,
    check_files,
    check_key,
    parse_signature,
)
from butterfly_weights.small_files import SMALL_FILES
from butterfly_weights.source import Source

SIGNED_FILES: Final = frozenset({MANIFEST_NAME, *SMALL_FILES})
"""What a signature must list, as far as the model has it."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature of these very files, whose manifest has this root. ``key_id`` is that of the
    trusted key that made it; None when no key is trusted, so that nobody could check who did."""

    root: str
    key_id: str | None


def check_signed(
    source: Source, checkpoint: Checkpoint, trusted: TrustedKeys, *, required: bool
) -> Signed | None:
    """Check the signature of a model that was opened; None when it has none and needs none.

    A signature that is there must be right. Raises SignatureRejected, ModelError, SourceError.
    """
    found = read_signature(source)
    if found is None:
        if required:
            raise SignatureRejected(
                f"{source.describe()} has no {SIGNATURE_NAME}, and [model] require_signature is "
                "set: sign the model with butterfly-admin manifest sign, or have its publisher "
                "do so"
            )
        return None
    signature = parse_signature(found)
    check_files(signature, signed_contents(source, checkpoint), SIGNED_FILES)
    key_id = check_key(signature, trusted) if trusted or required else None
    assert checkpoint.manifest is not None
    return Signed(checkpoint.manifest.root, key_id)


def read_signature(source: Source) -> bytes | None:
    """The bundle, or None when there is none. Raises SourceError, ModelError when too large."""
    try:
        return source.read_small(SIGNATURE_NAME, bytes_max=SIGNATURE_BYTES_MAX)
    except NotFound:
        return None
    except AccessDenied:
        # Who may not list a bucket is told 403 for what is missing, too.
        if SIGNATURE_NAME in (source.entries() or ()):
            raise
        return None


def signed_contents(source: Source, checkpoint: Checkpoint) -> Mapping[str, bytes]:
    """What a signature is over: the manifest as it lies there, and the small files as opened.

    Raises SignatureRejected when there is no manifest, or it is not the one that was opened.
    """
    if checkpoint.manifest is None:
        raise SignatureRejected(
            f"{source.describe()} has no {MANIFEST_NAME} that a signature could be of; make it "
            "with butterfly-admin manifest create, then sign"
        )
    raw = source.read_small(MANIFEST_NAME, bytes_max=MANIFEST_BYTES_MAX)
    if parse_manifest(raw) != checkpoint.manifest:
        raise SignatureRejected(f"{MANIFEST_NAME} was replaced while the model was opened")
    return {MANIFEST_NAME: raw, **checkpoint.small_files}
