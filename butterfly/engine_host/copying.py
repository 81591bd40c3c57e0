"""Copies from this machine's memory to a device, and the marks by which one can wait for them.

On a GPU they run on a stream of their own, beside reading and hashing; on the CPU they are over
when the call returns, so the same code runs everywhere.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

_cuda: Any = torch.cuda  # its classes have no types


class Mark(Protocol):
    """A point in the order of the copies."""

    def synchronize(self) -> None:
        """Wait until all copies begun before it have ended."""
        ...


class Copies:
    """One device's queue of copies. Thread-safe."""

    def __init__(self, device: torch.device) -> None:
        self.is_cuda = device.type == "cuda"
        self._stream: Any = _cuda.Stream(device) if self.is_cuda else None

    def follow(self) -> None:
        """Begin no copy before what this thread has queued on the device: memory that is taken
        again may still be read by it."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Begin a copy; ``source`` must stay as it is until a later mark is passed."""
        with self._running():
            target.copy_(source, non_blocking=True)

    def mark(self) -> Mark:
        """A mark after all copies begun so far."""
        if self._stream is None:
            return _Passed()
        event = _cuda.Event(blocking=True)
        event.record(self._stream)
        mark: Mark = event
        return mark

    def _running(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._stream) if self._stream is not None else nullcontext()


class _Passed:
    def synchronize(self) -> None:
        """Copies within this machine's memory are over when they return."""
