"""The client of control calls: one connection for each peer, made when needed and kept."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from butterfly_core.address import Address
from butterfly_core.errors import Unreachable
from butterfly_core.ids import NodeId
from butterfly_wire.calls import Calls
from butterfly_wire.dialing import Dialer, TlsDialer
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.limits import DEFAULT_LIMITS, WireLimits
from butterfly_wire.protocol import CONTROL, check_expected
from butterfly_wire.traffic import Traffic


class Pool:
    """Calls and streams over kept connections, with any dialer."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._calls: dict[Address, Calls] = {}
        self._gates: dict[Address, _Gate] = {}
        self._closed = False

    async def call(
        self,
        address: Address,
        method: str,
        body: Mapping[str, Any],
        *,
        timeout_seconds: float,
        expect: NodeId | None = None,
    ) -> Mapping[str, Any]:
        """Ask a peer and wait for its reply.

        Raises Unreachable (nothing listens, no answer in time, lost while waiting: the peer may
        or may not have acted), NotAuthenticated, Refused, and any ButterflyError that the
        handler raised, as the same class. Cancelling the call cancels the handler.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                calls = await self._connected(address, expect, timeout_seconds)
                return await calls.call(method, body)
        except TimeoutError as error:
            raise Unreachable(
                f"{address}: no answer to {method!r} within {timeout_seconds} s"
            ) from error

    async def stream(
        self,
        address: Address,
        method: str,
        body: Mapping[str, Any],
        *,
        expect: NodeId | None = None,
        idle_timeout_seconds: float | None = None,
    ) -> AsyncGenerator[Mapping[str, Any], None]:
        """Ask a peer for items; use it in ``contextlib.aclosing``, closing cancels the handler.

        Raises as ``call`` does; Unreachable too when nothing comes for the idle timeout.
        """
        timeout_seconds = self._dialer.limits.handshake_timeout_seconds
        try:
            async with asyncio.timeout(timeout_seconds):  # others may be dialling first
                calls = await self._connected(address, expect, timeout_seconds)
        except TimeoutError as error:
            raise Unreachable(f"no connection to {address} within {timeout_seconds} s") from error
        items = calls.stream(method, body, idle_timeout_seconds)
        try:
            async for item in items:
                yield item
        finally:
            await items.aclose()

    async def close(self) -> None:
        """Close all connections; calls under way end with Unreachable."""
        self._closed = True
        closing = [calls.connection for calls in self._calls.values()]
        for connection in closing:
            connection.close()
        await asyncio.gather(*(connection.wait_ended() for connection in closing))

    async def _connected(
        self, address: Address, expect: NodeId | None, timeout_seconds: float
    ) -> Calls:
        calls = self._calls.get(address) or await self._dial_once(address, expect, timeout_seconds)
        check_expected(expect, calls.peer_id, str(address))
        return calls

    async def _dial_once(
        self, address: Address, expect: NodeId | None, timeout_seconds: float
    ) -> Calls:
        gate = self._gates.setdefault(address, _Gate())
        gate.waiting_count += 1
        failures_before = gate.failures_count
        try:
            async with gate.lock:
                if (calls := self._calls.get(address)) is not None:
                    return calls
                if gate.failures_count > failures_before:
                    raise Unreachable(gate.failure)
                return await self._dial(address, expect, timeout_seconds, gate)
        finally:
            gate.waiting_count -= 1
            if gate.waiting_count == 0:
                del self._gates[address]

    async def _dial(
        self, address: Address, expect: NodeId | None, timeout_seconds: float, gate: "_Gate"
    ) -> Calls:
        if self._closed:
            raise Unreachable(f"{address}: this node closes its connections")
        try:
            connection, peer_id = await self._dialer.dial(
                address, CONTROL, expect=expect, timeout_seconds=timeout_seconds
            )
        except Unreachable as error:
            gate.fail(error)
            raise
        if self._closed:
            connection.close()
            await connection.wait_ended()
            raise Unreachable(f"{address}: this node closes its connections")
        calls = self._calls[address] = Calls(connection, peer_id)
        connection.on_end(lambda: self._forget(address, calls))
        self._close_when_idle(calls)
        return calls

    def _forget(self, address: Address, calls: Calls) -> None:
        if self._calls.get(address) is calls:
            del self._calls[address]

    def _close_when_idle(self, calls: Calls) -> None:
        """Look again and again, less often than once a call."""
        connection, idle_seconds = calls.connection, self._dialer.limits.idle_seconds
        loop = asyncio.get_running_loop()
        if connection.error is not None:
            return
        if calls.busy_count == 0 and loop.time() - calls.used_at >= idle_seconds:
            connection.close(Unreachable(f"{connection.where}: closed, unused"))
            return
        timer = loop.call_later(idle_seconds, self._close_when_idle, calls)
        calls.replace_idle_timer(timer)


@dataclass
class _Gate:
    """Lets one caller dial while others for the same peer wait for the result, good or bad."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting_count: int = 0
    failures_count: int = 0
    failure: str = ""

    def fail(self, error: Unreachable) -> None:
        self.failures_count += 1
        self.failure = str(error)


class PeerPool(Pool):
    """The pool over TCP and TLS."""

    def __init__(
        self,
        identity: TlsIdentity,
        *,
        cluster_name: str,
        node_id: NodeId,
        limits: WireLimits = DEFAULT_LIMITS,
        traffic: Traffic | None = None,
    ) -> None:
        dialer = TlsDialer(identity, cluster_name, node_id, limits)
        dialer.traffic = traffic or dialer.traffic
        super().__init__(dialer)
