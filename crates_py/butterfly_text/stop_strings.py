"""Ends an answer at the first stop string, without ever showing a part of it.

Pure: text in, text out. What may still become a stop string is held back until the next text
decides. The result does not depend on how the text was cut into pieces: the stop string that is
complete first wins, and of two that end at the same place the longer one.
"""

from collections.abc import Sequence

from butterfly_core.errors import RequestError

STOP_STRINGS_MAX = 16
STOP_STRING_CHARACTERS_MAX = 512


class StopStrings:
    """Filters one answer; not to be used for a second one. Raises RequestError at once."""

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > STOP_STRINGS_MAX:
            raise RequestError(
                f"stop has {len(stops)} strings; at most {STOP_STRINGS_MAX} are allowed"
            )
        for stop in stops:
            if not 1 <= len(stop) <= STOP_STRING_CHARACTERS_MAX:
                raise RequestError(
                    f"a stop string has {len(stop)} characters; "
                    f"1 to {STOP_STRING_CHARACTERS_MAX} are allowed"
                )
        self._stops = tuple(dict.fromkeys(stops))
        self._held_max = max((len(stop) - 1 for stop in self._stops), default=0)
        self._held = ""
        self._matched: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop string was seen; nothing is let through after it."""
        return self._matched is not None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the answer."""
        return self._matched

    def push(self, text: str) -> str:
        """Take the next piece; return what can be shown now, never a part of a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, at, self._matched = min(found)
            self._held = ""
            return text[:at]
        safe = len(text) - self._length_of_possible_start(text)
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """The answer is over: what was held back is no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _length_of_possible_start(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        for length in range(min(self._held_max, len(text)), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stops):
                return length
        return 0
