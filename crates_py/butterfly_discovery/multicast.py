"""Nodes of one LAN without any server: each announces itself to a multicast group."""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from butterfly_core.address import Address
from butterfly_core.errors import InvalidValue, Unreachable
from butterfly_discovery.dialable import dialable
from butterfly_discovery.multicast_messages import (
    CLOCK_SECONDS_MAX,
    KEY_BYTES_MIN,
    Announcement,
    Dropped,
    Heard,
    Limiter,
    decode,
    encode,
    next_stamp,
)
from butterfly_discovery.multicast_socket import check_group, open_group

_log = logging.getLogger(__name__)

SILENT_PERIODS = 5
"""With every tenth datagram lost, a node that lives is thought gone once in 100 000 periods."""

PERIODS_PER_SOCKET = 30
"""An interface may have gone and come back as another one: then only joining anew hears it."""

RETRY_SECONDS_MAX = 30.0


class MulticastSource:
    """Names the nodes that were heard lately, and the own one.

    ``key`` (16 bytes at least) signs; ``also_accepted`` are further keys to hear, for the time in
    which the cluster's secret changes. ``interface`` is a name, an IPv4 address, or "" for the
    system's choice. Raises InvalidValue for settings that cannot work.
    """

    name = "multicast"

    def __init__(
        self,
        cluster_name: str,
        me: Address,
        *,
        key: bytes,
        group: Address,
        interface: str = "",
        also_accepted: tuple[bytes, ...] = (),
        period_seconds: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        check_group(group, interface)
        keys = (key, *also_accepted)
        if any(len(each) < KEY_BYTES_MIN for each in keys):
            raise InvalidValue(f"a multicast key has at least {KEY_BYTES_MIN} bytes")
        if not dialable(me.host, me.port):
            raise InvalidValue(f"{me} cannot be announced: nobody could dial it")
        self._cluster_name = cluster_name
        self._me = me
        self._keys = keys
        self._group = group
        self._interface = interface
        self._period_seconds = period_seconds
        self._clock = clock
        self._wall_clock = wall_clock
        self._rng = rng or random.Random()
        self._heard = Heard(silent_seconds=SILENT_PERIODS * period_seconds)
        self._limiter = Limiter()
        self._dropped: Counter[str] = Counter()
        self._clocks_differed_seconds = float("-inf")
        self._stamp_ms = 0
        self._news = asyncio.Event()
        self._listened = False
        self._socket_problem: str | None = None
        self._told: frozenset[Address] | None = None

    @property
    def dropped(self) -> Mapping[str, int]:
        """Datagrams not taken since the start, by reason."""
        return dict(self._dropped)

    @property
    def problem(self) -> str | None:
        """Why nodes may not hear each other now."""
        if self._socket_problem:
            return self._socket_problem
        if self._clock() - self._clocks_differed_seconds < SILENT_PERIODS * self._period_seconds:
            return (
                f"nodes announce themselves with a time more than {CLOCK_SECONDS_MAX:.0f} s from "
                "this machine's; set the clocks (NTP)"
            )
        return None

    async def next(self) -> frozenset[Address]:
        """The first answer after one period of listening, later ones when the set changed.

        Raises Unreachable while the group cannot be joined.
        """
        while True:
            self._news.clear()
            if self._socket_problem:
                raise Unreachable(self._socket_problem)
            now = self._clock()
            answer = self._heard.alive(now) | {self._me}
            if self._listened and answer != self._told:
                self._told = answer
                return answer
            ends = self._heard.next_change(now)
            with suppress(TimeoutError):
                async with asyncio.timeout(None if ends is None else ends - now):
                    await self._news.wait()

    async def run(self) -> None:
        """Announce and listen until cancelled; a network that is down is tried again and again."""
        failures = 0
        while True:
            try:
                await self._announce()
                failures = 0
            except OSError as error:
                failures = min(failures + 1, 16)
                self._fail(error)
                longest = min(RETRY_SECONDS_MAX, self._period_seconds * 2.0**failures)
                await asyncio.sleep(longest * self._rng.uniform(0.5, 1.0))

    def _fail(self, error: OSError) -> None:
        where = f" at {self._interface}" if self._interface else ""
        problem = f"multicast group {self._group}{where}: {error.strerror or error}"
        if problem != self._socket_problem:
            _log.warning("%s; it is tried again", problem)
        self._socket_problem = problem
        self._listened = False  # once it works again, nobody is gone before they could be heard
        self._news.set()

    async def _announce(self) -> None:
        """Use one socket for some periods. Raises OSError."""
        opened = open_group(self._group, self._interface)
        loop = asyncio.get_running_loop()
        ears = _Ears(self._hear)
        transport, _ = await loop.create_datagram_endpoint(lambda: ears, sock=opened)
        try:
            for _ in range(PERIODS_PER_SOCKET):
                transport.sendto(self._datagram(), (self._group.host, self._group.port))
                if ears.trouble:
                    raise ears.trouble
                self._socket_problem = None
                await asyncio.sleep(self._period_seconds * self._rng.uniform(0.75, 1.25))
                self._listened = True
                self._news.set()
        finally:
            transport.close()

    def _datagram(self) -> bytes:
        self._stamp_ms = next_stamp(self._stamp_ms, self._wall_clock())
        announcement = Announcement(self._me, self._stamp_ms)
        return encode(announcement, cluster_name=self._cluster_name, key=self._keys[0])

    def _hear(self, data: bytes, source: str) -> None:
        now = self._clock()
        try:
            self._limiter.admit(source, now)
            heard = decode(data, cluster_name=self._cluster_name, keys=self._keys)
            if heard.address == self._me:
                return
            is_new = self._heard.take(heard, now=now, wall_seconds=self._wall_clock())
        except Dropped as reason:
            self._dropped[str(reason)] += 1
            if str(reason) == "clocks differ":
                self._clocks_differed_seconds = now
            return
        if is_new:
            self._news.set()


class _Ears(asyncio.DatagramProtocol):
    """Hands datagrams on, and keeps what the socket said went wrong."""

    def __init__(self, hear: Callable[[bytes, str], None]) -> None:
        self._hear = hear
        self.trouble: OSError | None = None

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._hear(data, addr[0])

    def error_received(self, exc: Exception) -> None:
        self.trouble = exc if isinstance(exc, OSError) else OSError(str(exc))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc:
            self.error_received(exc)
