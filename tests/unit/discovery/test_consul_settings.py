"""What cannot be right about Consul is refused before anything is asked of it."""

from pathlib import Path
from typing import Any

import pytest

from butterfly_core.address import Address
from butterfly_core.errors import InvalidValue, Unreachable
from butterfly_discovery.claims import Claim
from butterfly_discovery.consul_settings import (
    TOKEN_CHARACTERS_MAX,
    ConsulSettings,
    checked_token,
    token_from_file,
)
from butterfly_discovery.consul_source import ConsulSource


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("http://127.0.0.1:8500", "Consul at http://127.0.0.1:8500"),
        ("http://consul/", "Consul at http://consul:8500"),
        ("https://consul", "Consul at https://consul:8501"),
        ("https://[::1]:443", "Consul at https://[::1]:443"),
    ],
)
def test_a_url_names_an_agent(url: str, where: str) -> None:
    assert ConsulSettings(url).where == where


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8500",
        "ftp://consul",
        "http://",
        "http://:8500",
        "http://consul:0",
        "http://consul:99999",
        "http://me:secret@consul",
        "http://consul/v1",
        "http://consul?token=secret",
        "http://consul#a",
        "http://con sul",
        "http://[::1",
        "http://con\nsul",
        "http://cönsul",
        "http://a..b:8500",
        "http://.consul",
        "http://[1.2.3.4]",
        f"http://{'x' * 64}:8500",
    ],
)
def test_a_wrong_url_is_refused_and_a_secret_in_it_not_shown(url: str) -> None:
    with pytest.raises(InvalidValue, match="write http://host:port") as refused:
        ConsulSettings(url)

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"service": "a.b"}, "letters, digits and dashes"),
        ({"service": ""}, "letters, digits and dashes"),
        ({"datacenter": "a&b"}, "datacenter"),
        ({"ttl_seconds": 0.5}, "ttl_seconds is 1 to 3600"),
        ({"forget_seconds": 59.0}, "forget_seconds 60"),
        ({"wait_seconds": 601.0}, "wait_seconds is 1 to 600"),
        ({"key_file": Path("a.key")}, "needs its certificate"),
        ({"ca_file": Path("ca.pem")}, "write https://"),
    ],
)
def test_a_setting_that_cannot_be_right_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        ConsulSettings(**changes)


@pytest.mark.parametrize("me", [Address("0.0.0.0", 7000), Address("::", 7000), Address("a", 0)])
def test_a_node_that_nobody_could_dial_is_not_registered(me: Address) -> None:
    with pytest.raises(InvalidValue, match="cannot be dialled"):
        ConsulSource(ConsulSettings(), cluster_name="test", me=me, service_id="a")


@pytest.mark.parametrize("service_id", ["", "a/b", "a b", "-a", "a" * 129])
def test_an_id_that_consul_could_mistake_is_refused(service_id: str) -> None:
    with pytest.raises(InvalidValue, match="service id"):
        ConsulSource(
            ConsulSettings(), cluster_name="test", me=Address("a", 1), service_id=service_id
        )


def test_a_token_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one\n")
    token = token_from_file(file)

    assert token() == "one"
    file.write_text("two")
    assert token() == "two"


def test_a_token_file_that_is_missing_or_holds_no_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"none: No such file"):
        token_from_file(tmp_path / "none")()
    (tmp_path / "odd").write_bytes(b"\xff\xfe")
    with pytest.raises(Unreachable, match="odd does not hold a token") as refused:
        token_from_file(tmp_path / "odd")()
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("token", ["one two", "a\r\nb: c", "é", "a" * (TOKEN_CHARACTERS_MAX + 1)])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(Unreachable, match="mend its file") as refused:
        checked_token(token)

    assert token not in str(refused.value)


@pytest.mark.parametrize(
    ("candidate", "cluster_id", "version"),
    [
        ("", None, 0),
        ("a" * 301, None, 0),
        ("a\nb", None, 0),
        ("é", None, 0),
        ("a", "", 0),
        ("a", "c" * 129, 0),
        ("a", None, -1),
    ],
)
def test_a_claim_that_no_registry_should_hold_is_refused(
    candidate: str, cluster_id: str | None, version: int
) -> None:
    with pytest.raises(InvalidValue, match="claim's"):
        Claim(candidate, cluster_id, version)
