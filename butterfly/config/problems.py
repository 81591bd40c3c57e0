"""What is wrong with a configuration, gathered so that one run tells all of it."""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from butterfly_core.errors import ConfigError

_SHOWN_CHARACTERS_MAX = 120
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault: where a person wrote it, what was written, what is allowed instead."""

    where: str
    message: str
    value: object = None
    """None for a key that is missing or that should not be there at all."""

    def __str__(self) -> str:
        written = "" if self.value is None else f" = {shown(self.value)}"
        return f"{self.where}{written}: {self.message}"


def refuse(problems: Sequence[Problem]) -> ConfigError:
    """One error that names every problem, each on its own line."""
    count = len(problems)
    title = "The configuration has a problem" if count == 1 else f"{count} configuration problems"
    return ConfigError("\n".join([f"{title}:", *(f"  - {problem}" for problem in problems)]))


def shown(value: object) -> str:
    """A value as TOML would write it, cut when long, without a password in a URL."""
    if isinstance(value, list | tuple):
        text = f"[{', '.join(shown(entry) for entry in value)}]"
    elif isinstance(value, bool | int | float | dict):
        text = json.dumps(value, default=str)
    else:
        text = json.dumps(_URL_PASSWORD.sub("***@", str(value)), ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}…"


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The known word most like the given one, if any is alike."""
    found = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=cutoff)
    return found[0] if found else None
