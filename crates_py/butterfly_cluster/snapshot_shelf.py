# ruff: noqa: N802 - the names in this file are pysyncobj's, not ours
"""The newest snapshot in memory: made, handed out in pieces, put together from pieces.

It plays pysyncobj's serializer, whose own would use pickle, gzip and a fork.
"""

from collections.abc import Callable, Hashable
from typing import Any, Final

from butterfly_cluster.journal import Entry
from butterfly_cluster.raft_codec import SNAPSHOT_CHUNK_BYTES
from butterfly_cluster.snapshot import SNAPSHOT_BYTES_MAX, Snapshot
from butterfly_core.errors import ProtocolViolation

_IDLE, _SUCCESS = 0, 2


class SnapshotShelf:
    """Holds at most one snapshot, one incoming one, and a place per receiver.

    ``make`` is given the last two applied entries and returns the snapshot; ``save`` puts its
    bytes on the disk and raises StorageError when it cannot.
    """

    def __init__(
        self,
        latest: Snapshot | None,
        make: Callable[[Entry, Entry], Snapshot],
        save: Callable[[bytes], None],
    ) -> None:
        self._data: Final[list[bytes]] = [] if latest is None else [latest.encode()]
        self._make, self._save = make, save
        self._made_up_to: int | None = None
        self._sent_bytes: dict[Hashable, int] = {}
        self._incoming: bytearray | None = None
        self.made = 0

    def put(self, data: bytes) -> None:
        """Save a snapshot that came from a leader, and hand it out from now on."""
        self._save(data)
        self._data[:] = [data]
        self._sent_bytes.clear()

    def take_chunk(self, data: bytes, *, first: bool, last: bool) -> bytes | None:
        """Collect a piece; return the whole after the last one. Raises ProtocolViolation."""
        if first:
            self._incoming = bytearray()
        if self._incoming is None:
            return None
        self._incoming += data
        if len(self._incoming) > SNAPSHOT_BYTES_MAX:
            self._incoming = None
            raise ProtocolViolation(f"a snapshot of more than {SNAPSHOT_BYTES_MAX} bytes")
        if not last:
            return None
        whole, self._incoming = bytes(self._incoming), None
        return whole

    # What pysyncobj calls.

    def checkSerializing(self) -> tuple[int, int | None]:
        """Tell once that a snapshot was made, and up to which entry the log may be cut."""
        if self._made_up_to is None:
            return _IDLE, None
        index, self._made_up_to = self._made_up_to, None
        return _SUCCESS, index

    def serialize(self, data: tuple[Any, Entry, Entry, Any], index: int) -> None:
        """Make and save a snapshot at once. Raises StorageError."""
        _, last, previous, _ = data
        encoded = self._make(previous, last).encode()
        self.put(encoded)
        self._made_up_to = index
        self.made += 1

    def getTransmissionData(self, receiver: Hashable) -> tuple[bytes, bool, bool] | None:
        """The next piece for a receiver: bytes, is it the first, is it the last."""
        if self._made_up_to is not None or not self._data:
            return None
        whole = self._data[0]
        start = self._sent_bytes.get(receiver, 0)
        stop = start + SNAPSHOT_CHUNK_BYTES
        if stop >= len(whole):
            self._sent_bytes.pop(receiver, None)
        else:
            self._sent_bytes[receiver] = stop
        return whole[start:stop], start == 0, stop >= len(whole)

    def cancelTransmisstion(self, receiver: Hashable) -> None:
        """Begin anew when the receiver comes back."""
        self._sent_bytes.pop(receiver, None)
