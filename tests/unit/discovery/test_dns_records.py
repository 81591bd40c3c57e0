"""Records are read alike by every viewer, and hold for their TTL within bounds."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_core.address import Address, parse_address
from butterfly_core.errors import InvalidValue, Unreachable
from butterfly_discovery.book import ADDRESSES_PER_SOURCE_MAX
from butterfly_discovery.dialable import dialable
from butterfly_discovery.dns import SERVERS_MAX, DnsSource, Lookup, look_up, servers_asked
from butterfly_discovery.dns_records import SECONDS_MAX, found, hold_seconds

SERVER = parse_address("127.0.0.1:53")


@pytest.mark.parametrize(
    ("target", "read"),
    [
        ("Node-1.Example.COM.", "node-1.example.com:7"),
        ("node", "node:7"),
        ("10.0.0.1.", "10.0.0.1:7"),
        ("FD00:0::0001", "[fd00::1]:7"),
    ],
)
def test_an_address_has_one_form(target: str, read: str) -> None:
    assert dialable(target, 7) == parse_address(read)


@pytest.mark.parametrize(
    ("target", "port"),
    [
        (".", 7),
        ("", 7),
        ("a..b", 7),
        ("a,b", 7),
        ("a:1", 7),
        (r"a\.b", 7),
        ("-a", 7),
        ("0.0.0.0", 7),
        ("::", 7),
        ("a" * 64, 7),
        (".".join(["a" * 60] * 5), 7),
        ("a", 0),
        ("a", 65536),
    ],
)
def test_what_nobody_can_dial_is_skipped_and_told(target: str, port: int) -> None:
    answer = found([(target, port), ("b.test", 7)], ttl_seconds=60)

    assert answer.addresses == {Address("b.test", 7)}
    assert answer.skipped == (() if target == "." else (f"{target}:{port}",))


def test_an_endless_list_is_cut_alike_in_any_order() -> None:
    records = [(f"node-{number}", 7) for number in range(1500)]
    answer = found(records, ttl_seconds=60)

    assert len(answer.addresses) == ADDRESSES_PER_SOURCE_MAX
    assert answer.addresses == found(reversed(records), ttl_seconds=60).addresses


@given(st.floats(0, 2**31), st.booleans())
def test_an_answer_never_holds_for_ever_nor_for_no_time(ttl: float, anybody: bool) -> None:
    assert 5 <= hold_seconds(ttl, anybody=anybody) <= (SECONDS_MAX if anybody else 30)


@pytest.mark.parametrize("name", ["", "a b", "a..b", "10.0.0.1", "::1", "a" * 300, "ä.test", "*"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="DNS name"):
        DnsSource(name, default_port=7000)


@pytest.mark.parametrize(
    ("port", "servers", "told"),
    [
        (0, [SERVER], "port 0"),
        (7, [Address("ns.test", 53)], "IP address"),
        (7, [Address("::1", 0)], "IP address"),
        (7, [SERVER] * (SERVERS_MAX + 1), "at most 8"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    port: int, servers: list[Address], told: str
) -> None:
    with pytest.raises(InvalidValue, match=told):
        Lookup("a.test", port, tuple(servers))


@pytest.mark.parametrize(
    "content",
    [
        b"nameserver not-an-ip\n",
        b"nameserver 10.0.0.2\nnameserver 10.0.0.3:53\n",
        b"# caf\xe9\nnameserver 10.0.0.2\n",
        b"search a..b\nnameserver 10.0.0.2\n",
        b"nameserver\n",
        b"",
    ],
)
async def test_an_unusable_resolv_conf_is_no_answer_and_named(
    tmp_path: Path, content: bytes
) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_bytes(content)
    lookup = Lookup("nodes.example.com", 7000, resolv_conf=conf)

    with pytest.raises(Unreachable, match=str(conf)):
        await look_up(lookup)
    with pytest.raises(Unreachable, match=str(conf)):
        await servers_asked(lookup)
