"""Seals without a socket: what is wrapped comes out, what was changed does not."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_core.errors import ProtocolViolation
from butterfly_wire.sealing import SEGMENT_BYTES, into_functions, make_seal
from butterfly_wire.tickets import MODES, Mode

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
HEADER = b"header"


class BytesSource:
    """Received bytes that are all there."""

    def __init__(self, data: bytes) -> None:
        self._left = memoryview(data)

    def take(self, count: int) -> memoryview:
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def read_into(self, view: memoryview) -> None:
        view[:] = self.take(len(view))


def wrap(seal: Any, number: int, meta: bytes, payload: bytes) -> bytes:
    portions = seal.wrap(number, HEADER, meta, memoryview(payload))
    written = b"".join(bytes(part) for portion in portions for part in portion)
    return written.removeprefix(HEADER)


def unwrap(
    seal: Any, number: int, body: bytes, meta: bytes, payload: bytes, header: bytes = HEADER
) -> tuple[bytes, bytes]:
    room = memoryview(bytearray(len(payload)))
    found = seal.unwrap(number, header, len(meta), room, BytesSource(body))
    return found, bytes(room)


@given(
    st.sampled_from(MODES),
    st.integers(1, 4),
    st.lists(st.tuples(st.binary(max_size=50), st.integers(0, 3 * SEGMENT_BYTES)), max_size=6),
)
@settings(max_examples=50, deadline=None)
def test_frames_come_out_as_they_went_in_also_when_keys_change(
    mode: Mode, frames_per_key: int, frames: list[tuple[bytes, int]]
) -> None:
    sender, receiver = (make_seal(mode, KEY, frames_per_key) for _ in range(2))
    for number, (meta, length) in enumerate(frames):
        payload = bytes([number]) * length
        body = wrap(sender, number, meta, payload)

        assert unwrap(receiver, number, body, meta, payload) == (meta, payload)


@pytest.mark.parametrize("mode", ["aead", "mac"])
@pytest.mark.parametrize("length", [0, 1, SEGMENT_BYTES + 5])
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_changed_bit_anywhere_is_noticed(mode: Mode, length: int, data: st.DataObject) -> None:
    meta, payload = b"meta", bytes(length)
    body = bytearray(wrap(make_seal(mode, KEY, 10), 0, meta, payload))
    body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(ProtocolViolation, match="data frame 0 was changed"):
        unwrap(make_seal(mode, KEY, 10), 0, bytes(body), meta, payload)


@pytest.mark.parametrize("mode", ["aead", "mac"])
def test_another_header_or_key_is_noticed(mode: Mode) -> None:
    meta, payload = b"meta", bytes(2 * SEGMENT_BYTES)
    body = wrap(make_seal(mode, KEY, 10), 0, meta, payload)
    with pytest.raises(ProtocolViolation):
        unwrap(make_seal(mode, KEY, 10), 0, body, meta, payload, header=b"HEADER")
    with pytest.raises(ProtocolViolation):
        unwrap(make_seal(mode, OTHER_KEY, 10), 0, body, meta, payload)


def test_segments_cannot_change_places() -> None:
    payload = b"x" * SEGMENT_BYTES + b"y" * SEGMENT_BYTES
    body = wrap(make_seal("aead", KEY, 10), 0, b"", payload)
    head, first, second = body[:16], body[16 : 32 + SEGMENT_BYTES], body[32 + SEGMENT_BYTES :]

    with pytest.raises(ProtocolViolation):
        unwrap(make_seal("aead", KEY, 10), 0, head + second + first, b"", payload)


def test_aead_hides_what_it_carries_and_never_repeats_itself() -> None:
    seal = make_seal("aead", KEY, 10)
    meta, payload = b"who reads this", b"and this, too" * 100

    bodies = [wrap(seal, number, meta, payload) for number in range(3)]

    assert not any(meta in body or b"and this" in body for body in bodies)
    assert len(set(bodies)) == 3


def test_keys_change_after_the_agreed_count_of_frames() -> None:
    sender, receiver = make_seal("mac", KEY, 2), make_seal("mac", KEY, 3)
    bodies = [wrap(sender, number, b"m", b"") for number in range(3)]
    for number in range(2):
        unwrap(receiver, number, bodies[number], b"m", b"")

    with pytest.raises(ProtocolViolation):
        unwrap(receiver, 2, bodies[2], b"m", b"")


def test_a_cryptography_without_the_into_functions_does_the_same() -> None:
    class OlderCipher:
        def __init__(self) -> None:
            self._cipher = AESGCM(KEY)

        def encrypt(self, nonce: bytes, data: memoryview, header: bytes) -> bytes:
            return self._cipher.encrypt(nonce, data, header)

        def decrypt(self, nonce: bytes, data: memoryview, header: bytes) -> bytes:
            return self._cipher.decrypt(nonce, data, header)

    older: Any = OlderCipher()
    new, old = memoryview(bytearray(19)), memoryview(bytearray(19))
    encrypt_into, decrypt_into = into_functions(older)
    into_functions(AESGCM(KEY))[0](b"n" * 12, memoryview(b"abc"), HEADER, new)
    encrypt_into(b"n" * 12, memoryview(b"abc"), HEADER, old)
    plain = memoryview(bytearray(3))
    decrypt_into(b"n" * 12, new, HEADER, plain)

    assert new == old
    assert bytes(plain) == b"abc"
