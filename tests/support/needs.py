"""What a test needs of the machine: without it the test is skipped, or fails where all must run."""

import os

import pytest

STRICT_VARIABLE = "BUTTERFLY_TESTS_STRICT"


def need(there: bool, what: str) -> None:
    """Go on when it is there; skip otherwise, and fail under BUTTERFLY_TESTS_STRICT=1 as in CI."""
    if there:
        return
    if os.environ.get(STRICT_VARIABLE) == "1":
        pytest.fail(f"this test needs {what}; run tools/test_servers.sh as root")
    pytest.skip(f"needs {what}")
