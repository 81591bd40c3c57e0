"""One tensor of a checkpoint: what it is and where its bytes lie. Pure."""

from dataclasses import dataclass
from math import prod

from butterfly_core.errors import ModelError
from butterfly_core.layers import part_of_tensor
from butterfly_weights.errors import shown

# Bits per element, by the names that the safetensors format uses.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Bytes [offset, offset + nbytes) of the object ``shard``, little-endian, row-major.

    ``offset`` counts from the start of the object (header included).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    shard: str
    offset: int

    @property
    def part(self) -> str:
        """The part of the model (``embed``, ``layers.0``, …) to which it belongs."""
        return part_of_tensor(self.name)


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Raises ModelError for an unknown dtype or half a byte."""
    bits_each = DTYPE_BITS.get(dtype)
    if bits_each is None:
        raise ModelError(f"unknown dtype {shown(dtype)}; known are {', '.join(DTYPE_BITS)}")
    bits = bits_each * prod(shape)
    if bits % 8:
        raise ModelError(f"dtype {dtype} with shape {list(shape)} does not fill whole bytes")
    return bits // 8
