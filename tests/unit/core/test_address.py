import pytest

from butterfly_core.address import Address, parse_address
from butterfly_core.errors import InvalidValue


@pytest.mark.parametrize(
    "text",
    [
        "10.0.1.10:7000",
        "coord:7000",
        "node_1.example.com.:7000",
        "bücher.example:1",
        f"{'x' * 63}.y:0",
        "[::1]:7000",
        "[fe80::1%eth0]:7000",
    ],
)
def test_an_address_that_can_be_dialled_is_read_and_written_the_same(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "a..b:7000",
        f"{'x' * 64}:7000",
        f"{'x.' * 127}:7000",
        ".:7000",
        "two words:7000",
        "null\x00:7000",
        "coord:7000\n",
        "coord:" + "7" * 5000,
        "coord:65536",
        "coord:-1",
        "coord",
        ":7000",
        "::1:7000",
    ],
)
def test_what_no_resolver_takes_is_refused_at_the_edge(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_address(text)


def test_parts_that_mean_every_address_cannot_be_dialled() -> None:
    assert Address("0.0.0.0", 7000).is_wildcard
    assert Address("::", 7000).is_wildcard
    assert not Address("coord", 7000).is_wildcard
