"""Giving weights to other nodes: one thread per link, few uploads at once, within a limit."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from butterfly.engine_host.peer_protocol import (
    Give,
    Have,
    pack_given,
    pack_holdings,
    parse_request,
)
from butterfly_core.errors import InvalidValue, PeerError, Unreachable
from butterfly_weights.peers import Answer, Shelf
from butterfly_wire.datalink import DataLink

log = logging.getLogger(__name__)

UPLOADS_AT_ONCE: Final = 4
LINKS_MAX: Final = 64
_TURN_SECONDS: Final = 0.25


class Allowance:
    """Bytes per second on average, 0 without limit. Pure: the time comes in. What may be sent is
    at most one second's worth, and one leaf, more than the rate allows over any time."""

    def __init__(self, bytes_per_second: int, now: float) -> None:
        self._rate = bytes_per_second
        self._level = float(bytes_per_second)
        self._seen_at = now

    def take(self, nbytes: int, now: float) -> bool:
        """Take so many bytes, into debt if need be; False while there is a debt already."""
        if not self._rate:
            return True
        self._level = min(self._rate, self._level + (now - self._seen_at) * self._rate)
        self._seen_at = now
        if self._level <= 0:
            return False
        self._level -= nbytes
        return True


class Uploads:
    """Serves links that peers opened. ``close`` ends every thread. Thread-safe."""

    def __init__(
        self,
        shelf: Shelf,
        bytes_per_second: int = 0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shelf, self._clock = shelf, clock
        self._bytes_per_second = bytes_per_second
        self._allowance = Allowance(bytes_per_second, clock())
        self._turns = threading.Semaphore(UPLOADS_AT_ONCE)
        self._lock = threading.Lock()
        self._links: dict[DataLink, threading.Thread] = {}
        self._given_bytes = 0

    @property
    def given_bytes(self) -> int:
        with self._lock:
            return self._given_bytes

    def limit(self, bytes_per_second: int) -> None:
        """From now on at most so many on average; 0 is no limit."""
        with self._lock:
            if bytes_per_second != self._bytes_per_second:
                self._bytes_per_second = bytes_per_second
                self._allowance = Allowance(bytes_per_second, self._clock())

    def serve(self, peer: str, link: DataLink) -> None:
        """Answer what comes over the link, on a thread of its own, until it ends."""
        thread = threading.Thread(
            target=self._answer_all, args=(peer, link), name="butterfly-upload", daemon=True
        )
        with self._lock:
            full = len(self._links) >= LINKS_MAX
            if not full:
                self._links[link] = thread
        if full:
            log.warning("%d nodes ask for weights; node %s must wait", LINKS_MAX, peer)
            link.close()
        else:
            thread.start()

    def close(self) -> None:
        with self._lock:
            links = dict(self._links)
        for link in links:
            link.close()
        for thread in links.values():
            thread.join()

    def _answer_all(self, peer: str, link: DataLink) -> None:
        try:
            while True:
                self._answer(link)
        except Unreachable:
            pass  # it has what it needs
        except (PeerError, InvalidValue) as error:
            log.warning("node %s is given no weights: %s", peer, error)
        finally:
            link.close()
            with self._lock:
                self._links.pop(link, None)

    def _answer(self, link: DataLink) -> None:
        meta, payload = link.receive()
        request = parse_request(meta, payload.nbytes)
        if isinstance(request, Have):
            link.send(pack_holdings([self._shelf.holding(tensor) for tensor in request.tensors]))
        elif not self._turns.acquire(timeout=_TURN_SECONDS):
            link.send(pack_given(Answer.BUSY))
        else:
            try:
                self._give(link, request)
            finally:
                self._turns.release()

    def _give(self, link: DataLink, request: Give) -> None:
        if self._give_one(link, request):
            return
        if not any(self._shelf.is_loading(wanted.tensor) for wanted in request.wanted):
            link.send(pack_given(Answer.NOT_HERE))
            return
        self._shelf.wait(_TURN_SECONDS)
        if not self._give_one(link, request):
            link.send(pack_given(Answer.NOT_YET))

    def _give_one(self, link: DataLink, request: Give) -> bool:
        """Send the first of the leaves that is here, or that it must wait; False without one."""
        for position, wanted in enumerate(request.wanted):
            data = self._shelf.leaf(wanted)
            if data is None:
                continue
            with self._lock:
                allowed = self._allowance.take(data.nbytes, self._clock())
                self._given_bytes += data.nbytes if allowed else 0
            if allowed:
                link.send(pack_given(Answer.LEAF, position), data)
            else:
                link.send(pack_given(Answer.BUSY))
            return True
        return False
