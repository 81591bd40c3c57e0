"""The clock that leases and silence are counted on: it never jumps, and it counts sleep.

``time.monotonic`` stands still while a Linux machine is suspended, and the node would believe
after an hour that the leader spoke a moment ago.
"""

import time


def steady_seconds() -> float:
    """Seconds since the machine started, those that it was suspended for included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
