"""Limits that contradict each other are refused when they are made."""

from typing import Any

import pytest

from butterfly_core.errors import InvalidValue
from butterfly_wire.limits import WireLimits


@pytest.mark.parametrize(
    "changes",
    [
        {"exchanges_max": 0},
        {"silent_seconds": 0.5, "ping_seconds": 0.3},
        {"frame_bytes_max": 2 << 20, "write_buffer_bytes_max": 1 << 20},
    ],
)
def test_limits_that_cannot_work_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        WireLimits(**changes)
