"""How the bytes of a data link are protected: a writer and a reader of frame bodies per mode.

Keys are renewed by a ratchet after a fixed count of frames, on both sides alike, so no key
comes near the 2**32 frames that AES-GCM allows (NIST SP 800-38D), and an old key cannot be
computed from a newer one. Keys are never logged.

``aead`` seals a payload in segments: sender and receiver then work at the same time, and both
stay in their caches. Each part has its own nonce, and the frame's header is associated data of
every part, so parts cannot be moved, dropped or taken from another frame.
"""

import hmac
import mmap
import struct
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from butterfly_core.errors import ProtocolViolation
from butterfly_wire.secret import derive_key
from butterfly_wire.tickets import Mode

FRAMES_PER_KEY: Final = 1 << 24
SEGMENT_BYTES: Final = 128 << 10
TAG_BYTES: Final = 16
MAC_BYTES: Final = 32
_NONCE = struct.Struct("<QI")  # number of the frame, part of it
_RATCHET_PURPOSE = b"butterfly data rekey v1"

Bytes = bytes | bytearray | memoryview


def aligned_memory(size: int) -> memoryview:
    """Zeroed memory at a page boundary, where copies to and from the kernel are fastest."""
    return memoryview(mmap.mmap(-1, size))


class Source(Protocol):
    """Where received bytes come from."""

    def take(self, count: int) -> memoryview:
        """The next bytes, valid until the next call."""
        ...

    def read_into(self, view: memoryview) -> None:
        """Fill the view with the next bytes."""
        ...


class Seal(Protocol):
    """One direction of a link in one mode."""

    def wrap(
        self, number: int, header: bytes, meta: bytes, payload: memoryview
    ) -> Iterator[list[Bytes]]:
        """What to write, in portions; a portion is valid until the next is asked for."""
        ...

    def unwrap(
        self, number: int, header: bytes, meta_bytes: int, payload: memoryview, source: Source
    ) -> bytes:
        """Read a body: fill ``payload``, return the metadata. Raises ProtocolViolation."""
        ...


def make_seal(mode: Mode, key: bytes, frames_per_key: int) -> Seal:
    """The seal of a mode; one instance for each direction."""
    if mode == "plain":
        return _Plain()
    kind = _Aead if mode == "aead" else _Mac
    return kind(_Ratchet(key, f"butterfly data {mode} v1".encode(), frames_per_key))


class _Ratchet:
    """The keys of one direction, one after the other."""

    def __init__(self, chain: bytes, purpose: bytes, frames_per_key: int) -> None:
        self._chain = chain
        self._purpose = purpose
        self._frames_per_key = frames_per_key
        self._change_at = 0

    def new_key(self, number: int) -> bytes | None:
        """A key when this frame is the first one under it; numbers rise one by one."""
        if number < self._change_at:
            return None
        key = derive_key(self._chain, self._purpose)
        self._chain = derive_key(self._chain, _RATCHET_PURPOSE)
        self._change_at += self._frames_per_key
        return key


class _Plain:
    """No protection."""

    def wrap(
        self, number: int, header: bytes, meta: bytes, payload: memoryview
    ) -> Iterator[list[Bytes]]:
        yield [header, meta, payload]

    def unwrap(
        self, number: int, header: bytes, meta_bytes: int, payload: memoryview, source: Source
    ) -> bytes:
        meta = bytes(source.take(meta_bytes))
        source.read_into(payload)
        return meta


class _Mac:
    """Keyed BLAKE3 over the whole frame: nothing is hidden, nothing can be changed."""

    def __init__(self, ratchet: _Ratchet) -> None:
        self._ratchet = ratchet
        self._key = b""

    def wrap(
        self, number: int, header: bytes, meta: bytes, payload: memoryview
    ) -> Iterator[list[Bytes]]:
        yield [header, meta, payload, self._digest(number, header, meta, payload)]

    def unwrap(
        self, number: int, header: bytes, meta_bytes: int, payload: memoryview, source: Source
    ) -> bytes:
        meta = bytes(source.take(meta_bytes))
        source.read_into(payload)
        seen = bytes(source.take(MAC_BYTES))
        if not hmac.compare_digest(seen, self._digest(number, header, meta, payload)):
            raise _tampered(number)
        return meta

    def _digest(self, number: int, header: bytes, meta: bytes, payload: memoryview) -> bytes:
        self._key = self._ratchet.new_key(number) or self._key
        digest = blake3(key=self._key)
        digest.update(header + meta)
        digest.update(payload)
        return digest.digest()


class _Aead:
    """AES-256-GCM."""

    def __init__(self, ratchet: _Ratchet) -> None:
        self._ratchet = ratchet
        self._sealed = aligned_memory(SEGMENT_BYTES + TAG_BYTES)
        self._use(bytes(32))  # until the first frame asks for its key

    def _use(self, key: bytes) -> None:
        cipher = AESGCM(key)
        self._encrypt, self._decrypt = cipher.encrypt, cipher.decrypt
        self._encrypt_into, self._decrypt_into = into_functions(cipher)

    def wrap(
        self, number: int, header: bytes, meta: bytes, payload: memoryview
    ) -> Iterator[list[Bytes]]:
        if (key := self._ratchet.new_key(number)) is not None:
            self._use(key)
        portion: list[Bytes] = [header, self._encrypt(_NONCE.pack(number, 0), meta, header)]
        for part, start in enumerate(range(0, len(payload), SEGMENT_BYTES), 1):
            segment = payload[start : start + SEGMENT_BYTES]
            sealed = self._sealed[: len(segment) + TAG_BYTES]
            self._encrypt_into(_NONCE.pack(number, part), segment, header, sealed)
            portion.append(sealed)
            yield portion
            portion = []
        if portion:
            yield portion

    def unwrap(
        self, number: int, header: bytes, meta_bytes: int, payload: memoryview, source: Source
    ) -> bytes:
        if (key := self._ratchet.new_key(number)) is not None:
            self._use(key)
        try:
            sealed = source.take(meta_bytes + TAG_BYTES)
            meta = self._decrypt(_NONCE.pack(number, 0), sealed, header)
            for part, start in enumerate(range(0, len(payload), SEGMENT_BYTES), 1):
                segment = payload[start : start + SEGMENT_BYTES]
                sealed = source.take(len(segment) + TAG_BYTES)
                self._decrypt_into(_NONCE.pack(number, part), sealed, header, segment)
        except InvalidTag:
            raise _tampered(number) from None
        return meta


_Into = Callable[[bytes, memoryview, bytes, memoryview], object]


def into_functions(cipher: AESGCM) -> tuple[_Into, _Into]:
    """``encrypt_into`` and ``decrypt_into``, or their equals for an older cryptography."""
    if hasattr(cipher, "encrypt_into"):
        return cipher.encrypt_into, cipher.decrypt_into

    def encrypt_into(nonce: bytes, data: memoryview, header: bytes, out: memoryview) -> None:
        out[:] = cipher.encrypt(nonce, data, header)

    def decrypt_into(nonce: bytes, data: memoryview, header: bytes, out: memoryview) -> None:
        out[:] = cipher.decrypt(nonce, data, header)

    return encrypt_into, decrypt_into


def _tampered(number: int) -> ProtocolViolation:
    return ProtocolViolation(
        f"data frame {number} was changed on its way, or the two ends have different keys"
    )
