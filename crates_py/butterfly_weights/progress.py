"""How far a load has come."""

import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """``bytes_done`` are verified bytes in place; ``bytes_from_source`` also counts what had to
    be read again and the gaps read along."""

    bytes_done: int
    bytes_total: int
    bytes_from_source: int
    bytes_from_cache: int
    bytes_from_peers: int = 0


class ProgressCounter:
    """Counts from many threads."""

    def __init__(self, bytes_total: int) -> None:
        self._lock = threading.Lock()
        self._total = bytes_total
        self._done = self._source = self._cache = self._peers = 0

    def add(self, *, done: int = 0, source: int = 0, cache: int = 0, peers: int = 0) -> None:
        with self._lock:
            self._done += done
            self._source += source
            self._cache += cache
            self._peers += peers

    def now(self) -> LoadProgress:
        with self._lock:
            return LoadProgress(self._done, self._total, self._source, self._cache, self._peers)
