"""What sources behind HTTP have in common."""

import threading

from butterfly_weights.errors import NotFound
from butterfly_weights.http_reader import HttpReader
from butterfly_weights.retrying import Pace
from butterfly_weights.source import ObjectInfo


class HttpSource:
    """Small things come over one connection, whichever thread asks; as ``Source`` says."""

    pace: Pace

    def __init__(self, small: HttpReader) -> None:
        self._small, self._small_lock = small, threading.Lock()

    @property
    def readers_wanted(self) -> int:
        """One more than may ask at once: it shows that more would."""
        return self.pace.allowed + 1

    def stat(self, name: str) -> ObjectInfo:
        with self._small_lock:
            return self._small.stat(name)

    def exists(self, name: str) -> bool:
        try:
            self.stat(name)
        except NotFound:
            return False
        return True

    def read_small(self, name: str, *, bytes_max: int) -> bytes:
        with self._small_lock:
            return self._small.read_whole(name, bytes_max=bytes_max)

    def close(self) -> None:
        self._small.close()
