"""The limits of one load."""

from dataclasses import dataclass

from butterfly_weights.select import GAP_BYTES_MAX, GAP_SHARE_MAX, LONG_PIECE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class LoaderOptions:
    """At most ``readers`` pieces are in flight, fewer when the source takes fewer at once. On their
    way into this machine's memory they need none beyond the tensors themselves (and
    ``gap_bytes_max`` each); a device's destination takes smaller ones, 256 MiB together."""

    readers: int = 32
    piece_bytes_max: int = LONG_PIECE_BYTES_MAX
    gap_bytes_max: int = GAP_BYTES_MAX
    gap_share_max: float = GAP_SHARE_MAX
    leaf_refetches_max: int = 3
    poll_seconds: float = 0.1
