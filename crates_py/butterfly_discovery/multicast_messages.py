"""What nodes shout into the LAN, and what one remembers of it. Pure: time comes in.

A datagram is ``magic, time of the sender in ms, address, MAC``. The MAC (HMAC-SHA256, RFC 2104)
covers the cluster's name besides, so that another cluster's announcements fail like garbage. The
time grows with each one of a sender and must be near the receiver's: so none is heard twice.
"""

import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from butterfly_core.address import Address, parse_address
from butterfly_core.errors import InvalidValue
from butterfly_discovery.dialable import dialable

MAGIC = b"BFa1"
KEY_BYTES_MIN = 16
MAC_BYTES = 32
SIZE_MAX = 320
"""Of a datagram: the longest host name, its port and the rest; far below any MTU."""

CLOCK_SECONDS_MAX = 120.0
"""Machines whose clocks differ by more do not hear each other."""

HEARD_MAX = 1024
PER_SOURCE_MAX = 200
"""Datagrams that are looked at in a second, from one IP address: 400 nodes of one machine."""

IN_ALL_MAX = 4000

_HEAD = struct.Struct("!4sQ")


class Dropped(Exception):
    """A datagram that is not taken; the message is the reason it is counted under."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """Somebody of the cluster says that it is at an address."""

    address: Address
    stamp_ms: int


def encode(announcement: Announcement, *, cluster_name: str, key: bytes) -> bytes:
    """The datagram."""
    text = str(announcement.address).encode()
    body = _HEAD.pack(MAGIC, announcement.stamp_ms) + text
    return body + _mac(key, cluster_name, body)


def decode(data: bytes, *, cluster_name: str, keys: Sequence[bytes]) -> Announcement:
    """Read a datagram; its MAC is checked first. Raises Dropped."""
    if not _HEAD.size + MAC_BYTES < len(data) <= SIZE_MAX or not data.startswith(MAGIC):
        raise Dropped("garbage")
    body, mac = data[:-MAC_BYTES], data[-MAC_BYTES:]
    if not any(hmac.compare_digest(mac, _mac(key, cluster_name, body)) for key in keys):
        raise Dropped("not of this cluster")
    _, stamp_ms = _HEAD.unpack_from(body)
    try:
        address = parse_address(body[_HEAD.size :].decode())
    except (InvalidValue, UnicodeDecodeError):
        raise Dropped("garbage") from None
    if not dialable(address.host, address.port):
        raise Dropped("garbage")
    return Announcement(address, stamp_ms)


def _mac(key: bytes, cluster_name: str, body: bytes) -> bytes:
    name = cluster_name.encode()
    return hmac.digest(key, struct.pack("!I", len(name)) + name + body, "sha256")


def next_stamp(last_ms: int, wall_seconds: float) -> int:
    """Greater than the last one, unless a corrected clock left that so far behind it that nobody
    would take it."""
    now_ms = int(wall_seconds * 1000)
    return now_ms if _is_left_behind(last_ms, wall_seconds) else max(last_ms + 1, now_ms)


def _is_left_behind(stamp_ms: int, wall_seconds: float) -> bool:
    return stamp_ms / 1000 - wall_seconds > CLOCK_SECONDS_MAX


class Limiter:
    """Counts datagrams of the present second, so that a flood costs little."""

    def __init__(self) -> None:
        self._second = -1
        self._counts: dict[str, int] = {}
        self._in_all = 0

    def admit(self, source: str, now: float) -> None:
        """Let one more of an IP address pass. Raises Dropped."""
        if int(now) != self._second:
            self._second, self._counts, self._in_all = int(now), {}, 0
        count = self._counts.get(source, 0)
        if count >= PER_SOURCE_MAX or self._in_all >= IN_ALL_MAX:
            raise Dropped("too many")
        self._counts[source] = count + 1
        self._in_all += 1


@dataclass(slots=True)
class _Last:
    stamp_ms: int
    heard_seconds: float


class Heard:
    """Who announced itself lately. At most 1024 addresses, also of those that fell silent."""

    def __init__(self, *, silent_seconds: float) -> None:
        self._silent_seconds = silent_seconds
        self._last: dict[Address, _Last] = {}

    def take(self, announcement: Announcement, *, now: float, wall_seconds: float) -> bool:
        """Remember one; True when its sender was not alive before.

        Raises Dropped for one of another time, repeated, or without room.
        """
        if abs(announcement.stamp_ms / 1000 - wall_seconds) > CLOCK_SECONDS_MAX:
            raise Dropped("clocks differ")
        last = self._last.get(announcement.address)
        is_older = last is not None and announcement.stamp_ms <= last.stamp_ms
        # A stamp that a corrected clock left behind would itself be dropped if it came again.
        if last and is_older and not _is_left_behind(last.stamp_ms, wall_seconds):
            raise Dropped("repeated")
        if not last:
            self._forget(now)
            if len(self._last) >= HEARD_MAX:
                raise Dropped("too many")
        self._last[announcement.address] = _Last(announcement.stamp_ms, now)
        return not last or now >= self._ends(last)

    def alive(self, now: float) -> frozenset[Address]:
        """Those that are not silent."""
        return frozenset(a for a, last in self._last.items() if now < self._ends(last))

    def next_change(self, now: float) -> float | None:
        """When the next one will count as silent if it is not heard before."""
        return min(
            (e for last in self._last.values() if (e := self._ends(last)) > now), default=None
        )

    def _ends(self, last: _Last) -> float:
        return last.heard_seconds + self._silent_seconds

    def _forget(self, now: float) -> None:
        # A stamp may lie ahead of the clock: until twice the bound is over it could be repeated.
        keep_seconds = max(self._silent_seconds, 2 * CLOCK_SECONDS_MAX)
        self._last = {
            a: last for a, last in self._last.items() if now - last.heard_seconds <= keep_seconds
        }
