"""Whom a command asks, and with which key."""

import argparse
from pathlib import Path

import pytest

from butterfly.admin.exits import UsageError
from butterfly.admin.model_source import parse_model_source
from butterfly.admin.node_http import node_at, offset_of
from butterfly.admin.target import read_api_key, target_of, url_of
from butterfly_core.address import Address
from butterfly_core.errors import InvalidValue, UserError


def flags(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"url": None, "config": None, "api_key_file": None, **given})


@pytest.fixture
def config(tmp_path: Path) -> Path:
    keys = tmp_path / "keys"
    keys.write_text("# clients\n\nfirst-key\nsecond-key\n")
    path = tmp_path / "node.toml"
    path.write_text(
        '[cluster]\ncluster_name = "c"\n'
        '[model]\nsource_type = "embedded"\nsource_path = "toy-llama"\n'
        '[node]\nrole = "coordinator"\nhttp_address = "0.0.0.0:8099"\n'
        f'[security]\napi_keys_file = "{keys}"\n'
    )
    return path


def test_the_default_is_the_usual_port_of_this_machine() -> None:
    assert target_of(flags()).url == "http://127.0.0.1:8080"


def test_a_configuration_gives_address_and_key(config: Path) -> None:
    target = target_of(flags(config=config))

    assert (target.url, target.api_key) == ("http://127.0.0.1:8099", "first-key")


def test_what_is_said_beats_the_configuration(config: Path, tmp_path: Path) -> None:
    key = tmp_path / "other"
    key.write_text("other-key\n")
    target = target_of(flags(config=config, url="10.0.0.1:80", api_key_file=key))

    assert (target.url, target.api_key) == ("http://10.0.0.1:80", "other-key")


def test_the_key_is_carried_to_other_members() -> None:
    peer = node_at("http://a:1", "key").within(9).at("10.0.0.2:8080")

    assert (peer.url, peer.api_key, peer.timeout_seconds) == ("http://10.0.0.2:8080", "key", 9)


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "http://h:x", "http://u:p@h:1", "h:0"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidValue, match="is not a node's URL"):
        node_at(url)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        (Address("10.0.0.1", 8080), "http://10.0.0.1:8080"),
        (Address("::", 8080), "http://[::1]:8080"),
        (Address("0.0.0.0", 80), "http://127.0.0.1:80"),
    ],
)
def test_a_wildcard_is_dialled_over_loopback(address: Address, url: str) -> None:
    assert url_of(address) == url


@pytest.mark.parametrize("content", [b"", b"# only\n\n", b"k\xc3\xa9y\n", b"\xff"])
def test_a_file_without_a_usable_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)

    with pytest.raises(UsageError, match="--api-key-file"):
        read_api_key(path)


def test_a_clock_offset_is_measured_at_the_middle_of_the_request() -> None:
    date = "Thu, 01 Jan 1970 00:01:40 GMT"

    assert offset_of(date, 99.5, 101.5) == 0.0
    assert offset_of(date, 0.0, 1.0) == 100.0
    assert offset_of(None, 0.0, 1.0) is None
    assert offset_of("yesterday", 0.0, 1.0) is None


def test_sources_are_told_by_their_spelling(tmp_path: Path) -> None:
    assert parse_model_source(str(tmp_path)).source_type == "filesystem"
    assert parse_model_source("s3://b/p", endpoint_url="http://h").endpoint_url == "http://h"
    assert parse_model_source("toy-llama").is_toy
    web = parse_model_source("https://h/models/x/")
    assert (web.source_type, web.source_path) == ("http", "https://h/models/x")
    hub = parse_model_source("hf://org/name@v1", endpoint_url="http://h")
    assert (hub.source_type, hub.source_path) == ("huggingface", "org/name@v1")
    assert hub.endpoint_url == "http://h"


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3:///",
        "/no/such/folder",
        "gpt-5",
        "hf://gpt-5",
        "https://",
        "https://u:p@h/x",
        "ftp://h/x",
    ],
)
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_model_source(text)


def test_an_endpoint_without_s3_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--endpoint-url"):
        parse_model_source(str(tmp_path), endpoint_url="http://h")
