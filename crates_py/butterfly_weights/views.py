"""Memory that fills up one stretch after the other."""

from collections.abc import Sequence

STEP_BYTES = 2 << 20
"""At most this many bytes are taken at once, so that they can be hashed while they are still in
the processor's cache, and so many that the steps themselves cost little."""


class Cursor:
    """The place that the next byte of consecutive views goes to."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = [view for view in views if view.nbytes]
        self._index, self._within = 0, 0
        self.done, self.total = 0, sum(view.nbytes for view in self._views)

    def rest(self) -> memoryview:
        """The next bytes to fill, at most STEP_BYTES; there must be some."""
        return self._views[self._index][self._within : self._within + STEP_BYTES]

    def advance(self, count: int) -> None:
        """``count`` bytes of ``rest`` are filled."""
        self.done += count
        self._within += count
        if self._within == self._views[self._index].nbytes:
            self._index, self._within = self._index + 1, 0
