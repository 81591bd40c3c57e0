"""What a machine can carry, as measured."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capacity:
    """One engine's device. Bytes, bytes per second, floating-point operations per second."""

    device: str
    """``cpu`` or ``cuda:0``."""
    device_name: str
    memory_free_bytes: int
    memory_total_bytes: int
    memory_bytes_per_second: float
    flops_per_second: float
