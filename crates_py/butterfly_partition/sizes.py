"""Sizes for people, in powers of 1024."""

import math

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def human_bytes(count: int, *, at_least: bool = False) -> str:
    """``1536`` as ``1.50 KiB``: three digits, rounded to the nearest, or up when ``at_least``."""
    size, unit = float(count), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    if unit == 0:
        return f"{count} B"
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    if at_least:
        size = math.ceil(size * 10**digits) / 10**digits
    return f"{size:.{digits}f} {_UNITS[unit]}"
