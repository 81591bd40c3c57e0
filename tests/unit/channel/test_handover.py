from pathlib import Path

import pytest

from butterfly.handover import decode_checkpoint, encode_checkpoint
from butterfly_core.errors import ProtocolViolation
from butterfly_weights.checkpoint import read_checkpoint
from butterfly_weights.source import open_source

TOY = Path(__file__).parents[3] / "butterfly" / "demo_model" / "toy-llama"


def test_the_engine_gets_the_checkpoint_that_the_node_read() -> None:
    source = open_source("filesystem", str(TOY))
    checkpoint = read_checkpoint(source)
    source.close()

    assert decode_checkpoint(encode_checkpoint(checkpoint)) == checkpoint


@pytest.mark.parametrize("data", [b"", b"\x80", b"not msgpack", b"\x81\xa1a\x01"])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decode_checkpoint(data)
