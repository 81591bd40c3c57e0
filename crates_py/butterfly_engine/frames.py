"""What a frame between stages holds: bytes of hidden states, without pickle, and an epoch.

Shape and type of the hidden states follow from the stage; they are not sent.
"""

from typing import Protocol

import torch

from butterfly_core.errors import ProtocolViolation
from butterfly_engine.batch import StepBatch
from butterfly_engine.meters import Meters


class StageLike(Protocol):
    """What the pipeline needs of `butterfly_engine.stage.Stage`."""

    hidden_size: int
    dtype: torch.dtype
    is_last: bool

    def step(self, batch: StepBatch, hidden: torch.Tensor | None = None) -> torch.Tensor: ...


def to_bytes(hidden: torch.Tensor) -> memoryview:
    """The tensor's bytes in row order; a view where it is contiguous and on the CPU."""
    flat = hidden.detach().cpu().contiguous().view(torch.uint8).reshape(-1)
    return flat.numpy().data


def from_bytes(
    payload: memoryview, *, tokens: int, hidden_size: int, dtype: torch.dtype
) -> torch.Tensor:
    """A copy of the bytes as [tokens, hidden_size]. Raises ProtocolViolation for another size."""
    expected = tokens * hidden_size * dtype.itemsize
    if payload.nbytes != expected:
        raise ProtocolViolation(
            f"{payload.nbytes} bytes of hidden states for {tokens} tokens; expected {expected}"
        )
    copied = torch.empty(expected, dtype=torch.uint8)
    copied.numpy().data[:] = payload.cast("B")
    return copied.view(dtype).view(tokens, hidden_size)


def is_current(seen: int, own: int, meters: Meters) -> bool:
    """False for a frame of an older epoch. Raises ProtocolViolation for one of a newer."""
    if seen > own:
        raise ProtocolViolation(f"a frame of epoch {seen} reached the pipeline of epoch {own}")
    if seen < own:
        meters.frame_dropped()
    return seen == own
