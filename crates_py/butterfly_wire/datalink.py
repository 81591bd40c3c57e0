"""A data link: protected frames over a blocking socket, for tensors between two processes.

No asyncio here: the engine process reads with one thread and writes with another. A frame is
metadata (small) and a payload (large), behind a header of 24 bytes (little-endian)::

    offset  0          4      5    6      8              12               16
            b"BFD1"    mode   0    0      metadata       payload          frame number
            magic      u8     u8   u16    length u32     length u32       u64

and then what the mode's seal makes of the body (``sealing.py``). Numbers start at 0 and rise
by one, so a frame that is repeated, dropped or moved is noticed in every mode.
"""

import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from butterfly_core.errors import InvalidValue, ProtocolViolation, Unreachable
from butterfly_wire.sealing import (
    FRAMES_PER_KEY,
    MAC_BYTES,
    SEGMENT_BYTES,
    TAG_BYTES,
    Bytes,
    aligned_memory,
    make_seal,
)
from butterfly_wire.tickets import MODES, Mode, prepare_data_socket

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on

META_BYTES_MAX: Final = 1 << 20
FRAME_BYTES_MAX: Final = 256 << 20
_HEADER = struct.Struct("<4sBBHIIQ")
_MAGIC = b"BFD1"
_MODE_CODES = {mode: code for code, mode in enumerate(MODES, 1)}
_READ_AHEAD_BYTES = 64 << 10
_PAYLOAD_BYTES_AT_FIRST = 1 << 20
_CLOSE_TIMEOUT_SECONDS = 5.0

_T = TypeVar("_T")


class DataLink:
    """Frames in both directions; one thread for each direction may use it at once.

    Owns the socket. After any error the link is over: both sides get Unreachable.
    """

    def __init__(
        self,
        sock: socket.socket,
        send_key: bytes,
        receive_key: bytes,
        *,
        mode: Mode = "aead",
        frame_bytes_max: int = FRAME_BYTES_MAX,
        frames_per_key: int = FRAMES_PER_KEY,
    ) -> None:
        """``frame_bytes_max`` bounds metadata and payload together; metadata is 1 MiB at most.

        ``frames_per_key`` must be the same at both ends.
        """
        if mode not in MODES:
            raise InvalidValue(f"data plane mode {mode!r}; known are {', '.join(MODES)}")
        if not 0 < frame_bytes_max < 1 << 32:
            raise InvalidValue(f"frame_bytes_max is {frame_bytes_max}; it must be below 4 GiB")
        sock.setblocking(True)
        prepare_data_socket(sock)
        self._sock = sock
        self._mode_code = _MODE_CODES[mode]
        self._frame_bytes_max = frame_bytes_max
        self._sealing = make_seal(mode, send_key, frames_per_key)
        self._opening = make_seal(mode, receive_key, frames_per_key)
        self._reader = _SocketReader(sock)
        self._payload = memoryview(bytearray())
        self._sent_count = 0
        self._received_count = 0
        self._send_lock = threading.Lock()
        self._receive_lock = threading.Lock()
        self._ended: str | None = None

    def send(self, meta: bytes, payload: "Buffer" = b"") -> None:
        """Write one frame; blocks while the peer does not read.

        ``payload`` is any contiguous buffer, it may be reused on return. Raises Unreachable,
        InvalidValue for a frame over the limit.
        """
        view = memoryview(payload).cast("B")
        if len(meta) > META_BYTES_MAX or len(meta) + len(view) > self._frame_bytes_max:
            raise InvalidValue(
                f"a data frame of {len(meta)} + {len(view)} bytes; the limits are {META_BYTES_MAX} "
                f"for metadata and {self._frame_bytes_max} for both"
            )
        with self._send_lock:
            self._guarded(lambda: self._send(meta, view))

    def receive(self) -> tuple[bytes, memoryview]:
        """Wait for one frame: its metadata, and a writable view of its payload.

        The view starts at a page boundary and is valid until the next ``receive``. Raises
        Unreachable at the end of the stream, ProtocolViolation when the frame was tampered with.
        """
        with self._receive_lock:
            return self._guarded(self._receive)

    def close(self) -> None:
        """End the link; threads that wait in ``send`` or ``receive`` get Unreachable."""
        self._end("closed by this node")
        # A descriptor that is closed under a waiting thread could be reused under it.
        locks = (self._send_lock, self._receive_lock)
        held = [lock for lock in locks if lock.acquire(timeout=_CLOSE_TIMEOUT_SECONDS)]
        if len(held) == len(locks):
            self._sock.close()
        for lock in held:
            lock.release()

    def _send(self, meta: bytes, payload: memoryview) -> None:
        number = self._sent_count
        header = _HEADER.pack(_MAGIC, self._mode_code, 0, 0, len(meta), len(payload), number)
        for portion in self._sealing.wrap(number, header, meta, payload):
            _send_all(self._sock, portion)
        self._sent_count = number + 1

    def _receive(self) -> tuple[bytes, memoryview]:
        header = bytes(self._reader.take(_HEADER.size))
        meta_bytes, payload_bytes = self._check(header)
        payload = self._room_for(payload_bytes)
        meta = self._opening.unwrap(self._received_count, header, meta_bytes, payload, self._reader)
        self._received_count += 1
        return meta, payload

    def _check(self, header: bytes) -> tuple[int, int]:
        magic, mode_code, zero, zeros, meta_bytes, payload_bytes, number = _HEADER.unpack(header)
        if magic != _MAGIC or zero or zeros:
            raise ProtocolViolation(f"not a data frame: {header.hex()}")
        if mode_code != self._mode_code:
            raise ProtocolViolation(
                f"a data frame of mode {mode_code}, this end has {self._mode_code}; "
                "set the same [security] data_plane on all nodes"
            )
        if number != self._received_count:
            raise ProtocolViolation(
                f"data frame {number} came where {self._received_count} is due: "
                "repeated, lost or moved on its way"
            )
        if meta_bytes > META_BYTES_MAX or meta_bytes + payload_bytes > self._frame_bytes_max:
            raise ProtocolViolation(
                f"a data frame of {meta_bytes} + {payload_bytes} bytes is over the limit of "
                f"{self._frame_bytes_max}"
            )
        return meta_bytes, payload_bytes

    def _room_for(self, count: int) -> memoryview:
        if len(self._payload) < count:
            size = max(_PAYLOAD_BYTES_AT_FIRST, 1 << (count - 1).bit_length())
            self._payload = aligned_memory(size)
        return self._payload[:count]

    def _guarded(self, work: Callable[[], _T]) -> _T:
        if self._ended is not None:
            raise Unreachable(f"data link: {self._ended}")
        try:
            return work()
        except ProtocolViolation as violation:
            self._end(str(violation))
            raise
        except (OSError, EOFError) as error:
            self._end(f"the peer is gone ({error or type(error).__name__})")
            raise Unreachable(f"data link: {self._ended}") from error
        except BaseException:
            # Half a frame may be on its way; nothing after it would make sense.
            self._end("interrupted in the middle of a frame")
            raise

    def _end(self, reason: str) -> None:
        if self._ended is None:
            self._ended = reason
        with suppress(OSError):  # it may not be connected any more
            self._sock.shutdown(socket.SHUT_RDWR)


def _send_all(sock: socket.socket, buffers: Sequence[Bytes]) -> None:
    """Write all buffers with as few system calls as the kernel allows."""
    sent = sock.sendmsg(buffers)
    for buffer in buffers:
        length = len(buffer)
        if sent < length:
            sock.sendall(memoryview(buffer)[sent:])
            sent = length
        sent -= length


class _SocketReader:
    """Reads a socket a little ahead, so that a small frame costs one system call."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        largest = max(META_BYTES_MAX + max(TAG_BYTES, MAC_BYTES), SEGMENT_BYTES + TAG_BYTES)
        self._view = aligned_memory(largest + _READ_AHEAD_BYTES)
        self._start = 0
        self._stop = 0

    def take(self, count: int) -> memoryview:
        """The next bytes, valid until the next call. Raises EOFError, OSError."""
        if self._stop - self._start < count:
            self._fill(count)
        start = self._start
        self._start = start + count
        return self._view[start : start + count]

    def read_into(self, view: memoryview) -> None:
        """Fill the view with the next bytes; what was read ahead is copied, the rest is not."""
        ahead = min(self._stop - self._start, len(view))
        view[:ahead] = self._view[self._start : self._start + ahead]
        self._start += ahead
        while ahead < len(view):
            ahead += self._some(view[ahead:])

    def _fill(self, count: int) -> None:
        have = self._stop - self._start
        if have == 0 or self._start + count + _READ_AHEAD_BYTES > len(self._view):
            self._view[:have] = self._view[self._start : self._stop]
            self._start, self._stop = 0, have
        while self._stop - self._start < count:
            missing = count - (self._stop - self._start)
            stop = self._stop + max(missing, _READ_AHEAD_BYTES)
            self._stop += self._some(self._view[self._stop : stop])

    def _some(self, view: memoryview) -> int:
        count = self._sock.recv_into(view)
        if count == 0:
            raise EOFError("end of the stream")
        return count
