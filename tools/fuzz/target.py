"""One reader of foreign bytes, as the fuzzers drive it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """One reader."""

    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    """What it may raise."""
    seeds: tuple[bytes, ...]
    """Bytes it accepts, or nearly."""

    def __call__(self, data: bytes) -> bool:
        """Feed it; True when it accepted. Raises whatever it should not have raised."""
        try:
            self.read(data)
        except self.errors:
            return False
        return True
