"""Only fresh announcements of one's own cluster are heard, and a flood finds limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_core.address import Address, parse_address
from butterfly_core.errors import InvalidValue
from butterfly_discovery.multicast import MulticastSource
from butterfly_discovery.multicast_messages import (
    CLOCK_SECONDS_MAX,
    HEARD_MAX,
    IN_ALL_MAX,
    PER_SOURCE_MAX,
    SIZE_MAX,
    Announcement,
    Dropped,
    Heard,
    Limiter,
    decode,
    encode,
    next_stamp,
)

KEY = b"k" * 32
A, B = parse_address("a.test:7000"), parse_address("[fd00::1]:7000")
GROUP = parse_address("239.255.70.70:7946")


def said(address: Address = A, at: float = 1000.0) -> Announcement:
    return Announcement(address, int(at * 1000))


def datagram(announcement: Announcement, cluster_name: str = "lab", key: bytes = KEY) -> bytes:
    return encode(announcement, cluster_name=cluster_name, key=key)


def read(data: bytes, cluster_name: str = "lab", *keys: bytes) -> Announcement:
    return decode(data, cluster_name=cluster_name, keys=keys or (KEY,))


@given(st.sampled_from([A, B]), st.integers(0, 2**64 - 1))
def test_an_announcement_is_read_as_it_was_made(address: Address, stamp_ms: int) -> None:
    announcement = Announcement(address, stamp_ms)

    assert read(datagram(announcement)) == announcement


def test_the_longest_name_fits() -> None:
    longest = Address(".".join(["a" * 62] * 4) + ".b", 65535)

    assert len(datagram(said(longest))) <= SIZE_MAX
    assert read(datagram(said(longest))).address == longest


def test_any_changed_bit_is_noticed() -> None:
    whole = datagram(said())
    for bit in range(len(whole) * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Dropped):
            read(bytes(changed))


@given(st.binary(max_size=2 * SIZE_MAX))
def test_garbage_is_dropped(data: bytes) -> None:
    for each in (data, b"BFa1" + data):
        with pytest.raises(Dropped):
            read(each)


@pytest.mark.parametrize(("cluster_name", "key"), [("lab2", KEY), ("lab", b"x" * 32)])
def test_another_cluster_is_not_heard(cluster_name: str, key: bytes) -> None:
    with pytest.raises(Dropped, match="not of this cluster"):
        read(datagram(said(), cluster_name, key))


def test_while_the_secret_changes_both_keys_are_heard() -> None:
    old, new = b"o" * 16, b"n" * 16

    assert {read(datagram(said(), key=key), "lab", new, old) for key in (old, new)} == {said()}


@pytest.mark.parametrize("address", [Address("a,b", 1), Address("0.0.0.0", 1), Address("a", 0)])
def test_an_address_that_nobody_can_dial_is_dropped_even_when_signed(address: Address) -> None:
    with pytest.raises(Dropped, match="garbage"):
        read(datagram(said(address)))


def test_who_is_silent_too_long_is_forgotten_and_comes_back() -> None:
    heard = Heard(silent_seconds=10)

    assert heard.take(said(at=1000), now=0, wall_seconds=1000)
    assert not heard.take(said(at=1002), now=2, wall_seconds=1002)
    assert heard.alive(11.9) == {A}
    assert heard.next_change(11.9) == 12
    assert heard.alive(12) == frozenset()
    assert heard.next_change(12) is None
    assert heard.take(said(at=1020), now=20, wall_seconds=1020)


@given(st.floats(-CLOCK_SECONDS_MAX, CLOCK_SECONDS_MAX), st.floats(0, 2000))
def test_an_announcement_is_never_heard_twice(ahead: float, later: float) -> None:
    heard = Heard(silent_seconds=10)
    once = said(at=1000 + ahead)
    heard.take(once, now=0, wall_seconds=1000)

    def again() -> None:
        heard.take(said(B, at=1000 + later), now=later, wall_seconds=1000 + later)
        heard.take(once, now=later, wall_seconds=1000 + later)

    with pytest.raises(Dropped, match=r"repeated|clocks differ"):
        again()


@pytest.mark.parametrize("at", [1000 - CLOCK_SECONDS_MAX - 1, 1000 + CLOCK_SECONDS_MAX + 1])
def test_an_announcement_of_another_time_is_dropped(at: float) -> None:
    with pytest.raises(Dropped, match="clocks differ"):
        Heard(silent_seconds=10).take(said(at=at), now=0, wall_seconds=1000)


def test_the_table_is_bounded_and_makes_room_in_time() -> None:
    heard = Heard(silent_seconds=10)
    for port in range(1, HEARD_MAX + 1):
        heard.take(said(Address("a", port)), now=0, wall_seconds=1000)
    with pytest.raises(Dropped, match="too many"):
        heard.take(said(B), now=0, wall_seconds=1000)

    assert len(heard.alive(0)) == HEARD_MAX
    assert heard.take(said(B, at=2000), now=1000, wall_seconds=2000)


def test_a_flood_is_cut_per_machine_and_in_all() -> None:
    limiter = Limiter()
    admitted = 0
    for source in range(100):
        for _ in range(PER_SOURCE_MAX + 10):
            try:
                limiter.admit(f"10.0.0.{source}", 5.5)
            except Dropped:
                continue
            admitted += 1
        assert admitted <= PER_SOURCE_MAX * (source + 1)

    assert admitted == IN_ALL_MAX
    limiter.admit("10.0.0.1", 6.0)


@pytest.mark.parametrize(
    ("me", "group", "interface", "key", "told"),
    [
        (A, Address("10.0.0.1", 7946), "", KEY, "multicast group"),
        (A, Address("group.test", 7946), "", KEY, "multicast group"),
        (A, Address(GROUP.host, 0), "", KEY, "multicast group"),
        (A, Address("ff02::7", 7946), "127.0.0.1", KEY, "name the interface"),
        (A, GROUP, "", b"short", "16 bytes"),
        (Address("0.0.0.0", 7000), GROUP, "", KEY, "dial"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    me: Address, group: Address, interface: str, key: bytes, told: str
) -> None:
    with pytest.raises(InvalidValue, match=told):
        MulticastSource("lab", me, key=key, group=group, interface=interface)


def test_stamps_grow_also_while_the_clock_steps_back_a_little() -> None:
    assert next_stamp(0, 1000.0) == 1_000_000
    assert next_stamp(1_000_000, 990.0) == 1_000_001
    assert next_stamp(1_000_000, 1000.0 - CLOCK_SECONDS_MAX) == 1_000_001


def test_a_clock_that_was_far_ahead_and_is_corrected_is_believed_by_sender_and_hearer() -> None:
    ahead, corrected = 5000.0, 1000.0
    heard = Heard(silent_seconds=10)
    stamp_ms = next_stamp(0, ahead)
    heard.take(Announcement(A, stamp_ms), now=0.0, wall_seconds=ahead)

    stamp_ms = next_stamp(stamp_ms, corrected)

    assert stamp_ms == 1_000_000
    heard.take(Announcement(A, stamp_ms), now=1.0, wall_seconds=corrected)
    assert heard.alive(10.5) == {A}
    with pytest.raises(Dropped, match="repeated"):
        heard.take(Announcement(A, stamp_ms), now=1.0, wall_seconds=corrected)
