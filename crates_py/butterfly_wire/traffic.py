"""How much a node's control connections carried, counted where frames begin and end."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Traffic:
    """Since the start, pings and hellos included; what TLS adds to the bytes is not."""

    frames_in: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    bytes_out: int = 0

    def note_sent(self, frame_bytes: int) -> None:
        self.frames_out += 1
        self.bytes_out += frame_bytes

    def statistics(self) -> Mapping[str, int]:
        return asdict(self)
