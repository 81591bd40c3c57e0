"""Bytes and seconds, as people write and read them, and text from elsewhere, fit to print."""

import math
import re

from butterfly_core.errors import InvalidValue

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_UNPRINTABLE = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Read ``24GiB``, ``1.5 TB`` or ``4096``. Raises InvalidValue."""
    found = _QUANTITY.fullmatch(text)
    unit = _UNITS.get(found.group(2).upper()) if found else None
    if found is None or unit is None:
        raise InvalidValue(f"{text!r} is no amount of memory; write 24GiB, 512MiB or 16GB")
    return int(float(found.group(1)) * unit)


def bytes_text(count: float) -> str:
    """Three significant digits and a binary unit: ``1.50 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{_three_digits(count)} {unit}"
        count /= 1024
    return f"{_three_digits(count)} TiB"


def parse_duration(text: str) -> float:
    """Seconds in ``7d``, ``12h``, ``30 min`` or ``90s``. Raises InvalidValue."""
    found = _QUANTITY.fullmatch(text)
    unit = _SECONDS.get(found.group(2).lower()) if found else None
    if found is None or unit is None:
        raise InvalidValue(f"{text!r} is no length of time; write 7d, 12h, 30min or 90s")
    return float(found.group(1)) * unit


def _three_digits(value: float) -> str:
    return (
        f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    )


def duration_text(seconds: float) -> str:
    """``42 s``, ``3 min 05 s``, ``2 h 07 min``, ``3 d 4 h``."""
    if not math.isfinite(seconds):
        return "-"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def plain(value: object) -> str:
    """One value for people: ``-`` for nothing, no control characters."""
    return "-" if value is None or value == "" else str(value).translate(_UNPRINTABLE)
