"""Asks a person before something goes that cannot be brought back."""

import sys

from butterfly.admin.exits import UsageError


def confirmed(question: str, sure: bool, *, otherwise: str) -> bool:
    """True for a yes. Raises UsageError when nobody is there to say it."""
    if sure:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{question} Nobody is at the terminal to say so; add --yes")
    if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
        return True
    print(otherwise)
    return False
