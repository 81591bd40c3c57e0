"""What the pipeline needs of a connection to the next stage, and one inside this process."""

import queue
from typing import Protocol

from butterfly_core.errors import Unreachable

Payload = bytes | bytearray | memoryview


class Link(Protocol):
    """Frames in order, or Unreachable. One thread sends, one receives; ``close`` wakes both."""

    def send(self, meta: bytes, payload: Payload = b"") -> None: ...

    def receive(self) -> tuple[bytes, memoryview]:
        """The payload is valid until the next call."""
        ...

    def close(self) -> None: ...


class MemoryLink:
    """A one-way link between two threads; `cut` is what a broken cable does."""

    def __init__(self, frames_max: int = 64, *, timeout_seconds: float = 30.0) -> None:
        self._frames: queue.Queue[tuple[bytes, bytes] | None] = queue.Queue(frames_max)
        self._timeout_seconds = timeout_seconds
        self._closed = False

    def send(self, meta: bytes, payload: Payload = b"") -> None:
        if self._closed:
            raise Unreachable("the link in memory is closed")
        try:
            self._frames.put((meta, bytes(payload)), timeout=self._timeout_seconds)
        except queue.Full as error:
            raise Unreachable("nobody reads the link in memory") from error

    def receive(self) -> tuple[bytes, memoryview]:
        frame = None if self._closed else self._frames.get()
        if frame is None or self._closed:
            raise Unreachable("the link in memory is closed")
        meta, payload = frame
        return meta, memoryview(payload)

    def close(self) -> None:
        self._closed = True
        while True:
            try:
                self._frames.put_nowait(None)
                return
            except queue.Full:
                self._frames.get()

    cut = close
