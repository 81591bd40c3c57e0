"""One framed connection on an asyncio transport: what control calls and channels stand on.

It moves frames, notices a silent peer, bounds what waits in either direction, and ends once,
with one error that says why. What frames mean is not known here. The transport may be TLS, or
the in-memory one of ``memory.py``.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from butterfly_core.errors import (
    ButterflyError,
    NotAuthenticated,
    ProtocolViolation,
    Unreachable,
)
from butterfly_wire.frames import Frame, FrameDecoder, FrameKind, encode_frame
from butterfly_wire.identity import explained
from butterfly_wire.limits import WireLimits
from butterfly_wire.traffic import Traffic

_READ_AHEAD_BYTES = 1 << 16
_WRITE_HIGH_BYTES = 1 << 20

SECRET_ADVICE = (
    "check that both nodes use the same cluster secret file (or certificates of the same "
    "authority, or, without either, the same cluster name), that no certificate has expired, and "
    "that their clocks agree within a day"
)


class Connection(asyncio.Protocol):
    """Frames in both directions.

    Starts paused: frames are read once ``consume`` names who takes them. The consumer is called
    in order, on the event loop, and may pause again.
    """

    def __init__(self, where: str, limits: WireLimits, traffic: Traffic | None = None) -> None:
        self.where = where
        """The peer, for messages: an address, and its id once known."""
        self.limits = limits
        self.begun = False
        """True once the hello is over."""
        self.version = 0
        """Of the wire, agreed in the hello; 0 before it."""
        self.error: ButterflyError | None = None
        """Why it ended; None while it lives."""
        self._traffic = traffic or Traffic()
        self._loop = asyncio.get_running_loop()
        self._decoder = FrameDecoder(limits.hello_bytes_max)
        self._consumer: Callable[[Frame], None] | None = None
        self._paused = True
        self._transport: asyncio.Transport | None = None
        self._ended = asyncio.Event()
        self._on_end: list[Callable[[], None]] = []
        self._writable = asyncio.Event()
        self._writable.set()
        self._heard_at = self._sent_at = self._loop.time()
        self._sent_bytes = 0
        self._left_bytes = 0
        self._moved_at = {"in": self._heard_at, "out": self._heard_at}
        self._timer: asyncio.TimerHandle | None = None
        self._abort_timer: asyncio.TimerHandle | None = None

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        if self.error is not None:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._traffic.bytes_in += len(data)
        if self._decoder.buffered_bytes == 0:
            self._moved_at["in"] = self._heard_at  # a frame begins
        self._decoder.receive(data)
        self._pump()

    def eof_received(self) -> bool:
        return False  # the transport closes itself

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(_reason(exc, self.where))
        for timer in (self._timer, self._abort_timer):
            if timer is not None:
                timer.cancel()
        self._ended.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # Reading.

    @property
    def transport(self) -> asyncio.Transport:
        """Raises Unreachable before the connection is made."""
        if self._transport is None:
            raise Unreachable(f"{self.where}: not connected")
        return self._transport

    def consume(self, consumer: Callable[[Frame], None]) -> None:
        """Hand every further frame to this consumer."""
        self._consumer = consumer
        self.resume()

    def pause(self) -> None:
        """Take no more frames; soon nothing more is read, and the peer has to wait."""
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._heard_at = self._loop.time()
        self._pump()

    async def first_frame(self) -> Frame:
        """The next frame, alone; then paused. Raises the error of the end."""
        arrived: asyncio.Future[Frame] = self._loop.create_future()

        def take(frame: Frame) -> None:
            self.pause()
            if not arrived.done():
                arrived.set_result(frame)

        def fail() -> None:
            if not arrived.done() and self.error is not None:
                arrived.set_exception(self.error)

        self.on_end(fail)
        self.consume(take)
        return await arrived

    def _pump(self) -> None:
        try:
            while not self._paused and self._consumer is not None and self.error is None:
                frame = self._decoder.next_frame()
                if frame is None:
                    break
                self._moved_at["in"] = self._loop.time()
                self._traffic.frames_in += 1
                if frame.kind is not FrameKind.PING:
                    self._consumer(frame)
        except ProtocolViolation as violation:
            self.abort(ProtocolViolation(f"{self.where}: {violation}"))
        self._pace()

    def _pace(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._paused and self._decoder.buffered_bytes > _READ_AHEAD_BYTES:
            self._transport.pause_reading()
        elif not self._paused and not self._transport.is_reading():
            self._heard_at = self._loop.time()
            self._transport.resume_reading()

    # Writing.

    def send(
        self,
        kind: FrameKind,
        exchange: int = 0,
        meta: Mapping[str, Any] | None = None,
        payload: bytes = b"",
    ) -> int:
        """Queue one frame: its bytes, or 0 when the connection has ended or too much waits.

        Never blocks. Raises InvalidValue for a frame over the limit.
        """
        data = encode_frame(kind, exchange, meta, payload, bytes_max=self.limits.frame_bytes_max)
        if self.error is not None or self._transport is None or self._transport.is_closing():
            return 0
        waiting = self._transport.get_write_buffer_size()
        if waiting + len(data) > self.limits.write_buffer_bytes_max:
            return 0
        self._sent_at = self._loop.time()
        self._sent_bytes += len(data)
        self._traffic.note_sent(len(data))
        self._transport.write(data)
        return len(data)

    async def drained(self) -> None:
        """Wait until little is left to write, or the connection has ended."""
        while self.error is None and not self._writable.is_set():
            await self._writable.wait()

    # Life.

    def begin(self) -> None:
        """The hello is over: allow full frames, and watch for silence from now on."""
        self.begun = True
        self._decoder.bytes_max = self.limits.frame_bytes_max
        self._heard_at = self._loop.time()
        self._tick()

    def _tick(self) -> None:
        if self.error is not None:
            return
        now = self._loop.time()
        reading = self._transport is not None and self._transport.is_reading()
        if reading and now - self._heard_at > self.limits.silent_seconds:
            self.abort(
                Unreachable(
                    f"{self.where} has been silent for {now - self._heard_at:.1f} s; "
                    "it died, hangs, or the network between is cut"
                )
            )
            return
        if (stuck := self._stuck(now)) is not None:
            self.abort(Unreachable(f"{self.where} {stuck}"))
            return
        if now - self._sent_at >= self.limits.ping_seconds * 0.9:
            self.send(FrameKind.PING)
        self._timer = self._loop.call_later(self.limits.ping_seconds, self._tick)

    def _stuck(self, now: float) -> str | None:
        """Why a peer that is not silent is given up: it drips a frame, or does not read."""
        limit = self.limits.frame_timeout_seconds
        waiting = self.transport.get_write_buffer_size()
        if not waiting or self._sent_bytes - waiting > self._left_bytes:
            self._left_bytes = self._sent_bytes - waiting
            self._moved_at["out"] = now
        if self._paused or not self._decoder.buffered_bytes:
            self._moved_at["in"] = now
        if now - self._moved_at["in"] > limit:
            return f"has not finished a frame within {limit} s"
        if now - self._moved_at["out"] > limit:
            return f"has read nothing for {limit} s while {waiting} bytes wait for it"
        return None

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call this once when the connection ends (at once when it has)."""
        if self.error is not None:
            callback()
        else:
            self._on_end.append(callback)

    def end(self, error: ButterflyError) -> None:
        """Tell everybody once why it is over; the transport may still be flushing."""
        if self.error is not None:
            return
        self.error = error
        self._writable.set()
        callbacks, self._on_end = self._on_end, []
        for callback in callbacks:
            callback()

    def close(self, error: ButterflyError | None = None) -> None:
        """Flush what is queued, then close; abruptly when that takes too long."""
        self.end(error or Unreachable(f"{self.where}: closed by this node"))
        if self._transport is not None and self._abort_timer is None and not self._ended.is_set():
            self._abort_timer = self._loop.call_later(
                self.limits.close_timeout_seconds, self._transport.abort
            )
            self._transport.close()

    def abort(self, error: ButterflyError) -> None:
        """Close at once, unsent bytes are lost."""
        self.end(error)
        if self._transport is not None:
            self._transport.abort()

    async def wait_ended(self) -> None:
        """Wait until the transport is gone (bounded after ``close`` and ``abort``)."""
        await self._ended.wait()


def _reason(exc: Exception | None, where: str) -> ButterflyError:
    if exc is None:
        return Unreachable(f"{where} closed the connection")
    return tls_reason(exc, where) or Unreachable(f"{where}: {exc or type(exc).__name__}")


def tls_reason(exc: BaseException, where: str) -> ButterflyError | None:
    """What a TLS failure means here; None when it is none.

    With TLS 1.3 a dialer learns only after its own handshake that the peer refused its
    certificate: by an alert, while it waits for the first bytes.
    """
    if isinstance(exc, ssl.SSLCertVerificationError) or (
        isinstance(exc, ssl.SSLError) and "ALERT" in (exc.reason or "")
    ):
        alert = not isinstance(exc, ssl.SSLCertVerificationError)
        whose = "it refused this node's certificate: " if alert else ""
        return NotAuthenticated(f"{where}: {whose}{explained(exc)}; {SECRET_ADVICE}")
    if isinstance(exc, ssl.SSLError):
        return NotAuthenticated(
            f"{where} does not speak this protocol ({exc.reason or exc}); "
            "check that the address is the bind_address of a node"
        )
    return None
