"""What the node is told of a load that failed."""

import pytest

from butterfly.engine_host.telling import load_failed
from butterfly_core.errors import SourceError
from butterfly_weights.errors import BytesMismatch

WRONG = BytesMismatch(
    object_name="a.safetensors", tensor="w", start=0, stop=4, expected="aa", seen="bb", fetches=4
)


@pytest.mark.parametrize(("error", "unproven"), [(WRONG, True), (SourceError("down"), False)])
def test_bytes_that_are_not_the_models_are_told_apart(error: Exception, unproven: bool) -> None:
    told = load_failed(3, error)

    assert (told.epoch, told.message, told.unproven) == (3, str(error), unproven)
    assert (told.file, told.tensor) == (("a.safetensors", "w") if unproven else (None, None))
