"""A checkpoint's description on its way from the node process to its engine process.

The node reads headers and manifest once; the engine must not read them again, because every
byte of a source counts.
"""

from typing import Any

import msgpack
from pydantic import TypeAdapter, ValidationError

from butterfly_core.errors import ProtocolViolation
from butterfly_weights.checkpoint import Checkpoint

_ADAPTER: TypeAdapter[Checkpoint] = TypeAdapter(Checkpoint)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Everything the loader needs, as msgpack."""
    encoded: bytes = msgpack.packb(_ADAPTER.dump_python(checkpoint))
    return encoded


def decode_checkpoint(data: bytes) -> Checkpoint:
    """Raises ProtocolViolation for anything that ``encode_checkpoint`` did not write."""
    try:
        plain: Any = msgpack.unpackb(data)
        return _ADAPTER.validate_python(plain)
    except (ValueError, msgpack.UnpackException) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ProtocolViolation(f"not a checkpoint's description: {reason}") from error
