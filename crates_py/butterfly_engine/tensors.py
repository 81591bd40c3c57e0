"""Hidden states to bytes and back, without pickle; the shape and type follow from the stage."""

import torch

from butterfly_core.errors import ProtocolViolation


def to_bytes(hidden: torch.Tensor) -> memoryview:
    """The tensor's bytes in row order; a view where it is contiguous and on the CPU."""
    flat = hidden.detach().cpu().contiguous().view(torch.uint8).reshape(-1)
    return memoryview(flat.numpy())


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
    memoryview(copied.numpy())[:] = payload.cast("B")
    return copied.view(dtype).view(tokens, hidden_size)
