"""Turns a stream of token ids into a stream of text that never has to be taken back.

Pure: the decoder of the tokenizer comes in as a function. How it works: only a short window of
the latest ids is decoded at each step, and what it says beyond the text already given out is new.
The window starts with the tokens of the last output, because decoders treat the first token
specially (they strip its space) and so that token must be an old one. (The idea of such a window is
that of text-generation-inference and vLLM: prefix and read offsets.)

Three things make a text provisional, and each is held back until it is settled:
- the window ends in U+FFFD: bytes of a character may still be missing (byte-level BPE);
- it ends in a run of byte-fallback tokens ``<0xE2>``: decoders turn a whole run into U+FFFD when
  any part of it is not UTF-8. Only a run longer than ``BYTE_RUN_TOKENS_MAX`` is given out earlier;
- tokens without any text: they wait for one that has some.
"""

from collections.abc import Callable, Mapping, Sequence

Decode = Callable[[Sequence[int]], str]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
WINDOW_TOKENS_MAX = 32
BYTE_RUN_TOKENS_MAX = 32
CHARACTER_BYTES_MAX = 4


class Detokenizer:
    """Text of one answer; not to be used for a second one.

    ``decode`` gives the text of ids. ``is_shown`` tells the ids that it leaves out: special ones
    and those of no vocabulary (they do not even end a run of bytes). ``byte_of_id`` names the
    byte-fallback tokens, if the tokenizer has any. Each step decodes at most
    ``WINDOW_TOKENS_MAX + BYTE_RUN_TOKENS_MAX`` old ids and the new ones, a few times.
    """

    def __init__(
        self,
        decode: Decode,
        *,
        is_shown: Callable[[int], bool] | None = None,
        byte_of_id: Mapping[int, int] | None = None,
    ) -> None:
        self._decode = decode
        self._is_shown = is_shown
        self._byte_of_id = byte_of_id or {}
        self._window: list[int] = []
        self._given = 0  # characters of the window's text that were given out
        self._read = 0  # ids of the window that were decoded when text was last given out

    def push(self, ids: Sequence[int]) -> str:
        """Take the next ids; return the text that is settled by now, which may be empty."""
        self._window += filter(self._is_shown, ids) if self._is_shown else ids
        end = self._settled_end()
        if end <= self._read:
            return ""
        text = self._decode(self._window[:end])
        if text.endswith(REPLACEMENT):
            # A character that is not complete shows as exactly one U+FFFD.
            return self._give_unfinished(text, end)
        if len(text) > self._given:
            return self._give(text, end)
        if end - self._read > WINDOW_TOKENS_MAX:
            del self._window[self._read : end]  # no text in any of them
        return ""

    def flush(self) -> str:
        """The answer is over: the rest of the text, as it is."""
        rest = self._decode(self._window)[self._given :]
        self._window, self._given, self._read = [], 0, 0
        return rest

    def _settled_end(self) -> int:
        """Index after the last id that does not belong to an unfinished run of bytes."""
        window = self._window
        start = len(window)
        while start > self._read and window[start - 1] in self._byte_of_id:
            start -= 1
        if len(window) - start <= BYTE_RUN_TOKENS_MAX:
            return start
        return len(window) - self._bytes_of_unfinished_character()

    def _bytes_of_unfinished_character(self) -> int:
        """How many byte tokens at the end begin a UTF-8 character and do not complete it."""
        for back in range(1, CHARACTER_BYTES_MAX):
            byte = self._byte_of_id[self._window[-back]]
            if byte >= 0b1100_0000:
                needed = 2 + (byte >= 0b1110_0000) + (byte >= 0b1111_0000)
                return back if back < needed else 0
            if byte < 0b1000_0000:
                return 0
        return 0

    def _give(self, text: str, end: int) -> str:
        """Give out all of ``text``; the next window starts with the ids that it came from."""
        new = text[self._given :]
        del self._window[: self._read]
        self._read = end - self._read
        self._given = len(self._decode(self._window[: self._read]))
        return new

    def _give_unfinished(self, text: str, end: int) -> str:
        """Give out all but the last character, and begin a new window if this one is long."""
        if end <= WINDOW_TOKENS_MAX:
            new = text[self._given : -1]
            self._given = max(self._given, len(text) - 1)
            return new
        cut = self._cut(text, end)
        settled = self._decode(self._window[:cut]) if cut < end else text
        new = settled[self._given :]
        del self._window[:cut]
        self._given, self._read = max(0, self._given - len(settled)), 0
        return new

    def _cut(self, text: str, end: int) -> int:
        """A place near the end that splits no character, so that both sides can be decoded alone.

        There is one unless tokens without end begin inside one character and end inside the next.
        """
        for cut in range(end - 1, max(0, end - WINDOW_TOKENS_MAX), -1):
            left, right = self._decode(self._window[:cut]), self._decode(self._window[cut:end])
            if left + right == text:
                return cut
        return end
