"""Keys, where they come from, and pages of other sites."""

from pathlib import Path

import pytest

from butterfly.api.auth import KeyCheck, check_host, check_origin, load_api_keys
from butterfly.api.errors import ForeignOrigin, KeyMissing
from butterfly.api.middleware import accept_request_id
from butterfly_core.errors import ConfigError

ONE, OTHER = "first-key-0123456", "other-key-0123456"


def keys_file(directory: Path, text: str) -> Path:
    path = directory / "keys"
    path.write_text(text)
    return path


def test_keys_are_lines_and_comments_are_not(tmp_path: Path) -> None:
    path = keys_file(tmp_path, f"# ours\n\n{ONE}\n  {OTHER}  # for ann\n")

    assert load_api_keys(path) == {ONE, OTHER}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# nothing\n", "holds no key"),
        (f"{ONE}\nshort\n", "line 2: a key of 5 characters"),
        ("a key with blanks in it\n", "without spaces"),
        ("schlüssel-0123456789\n", "printable ASCII"),
    ],
)
def test_a_bad_file_of_keys_is_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as refused:
        load_api_keys(keys_file(tmp_path, text))
    assert "keys" in str(refused.value)
    assert ONE not in str(refused.value)


def test_a_missing_file_of_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_api_keys(tmp_path / "none")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {ONE}",
        ONE,
        f"Bearer {ONE}x",
        f"Bearer {ONE[:-1]}",
        f"Bearer {ONE} {OTHER}",
        "Bearer \udcff",
    ],
)
def test_without_a_known_key_nothing_is_told(header: str | None) -> None:
    with pytest.raises(KeyMissing) as refused:
        KeyCheck(frozenset({ONE, OTHER})).check("/status", header)
    assert ONE not in str(refused.value)


@pytest.mark.parametrize("header", [f"Bearer {ONE}", f"bearer  {OTHER}", f"Bearer {OTHER} "])
def test_each_known_key_opens(header: str) -> None:
    KeyCheck(frozenset({ONE, OTHER})).check("/v1/models", header)


@pytest.mark.parametrize("path", ["/health", "/readiness"])
def test_health_needs_no_key(path: str) -> None:
    KeyCheck(frozenset({ONE})).check(path, None)


@pytest.mark.parametrize("path", ["/health/", "/Health", "/metrics", "/nowhere", "/"])
def test_everything_else_does(path: str) -> None:
    with pytest.raises(KeyMissing):
        KeyCheck(frozenset({ONE})).check(path, None)


def test_without_keys_everybody_may_ask() -> None:
    KeyCheck(frozenset()).check("/status", None)


@pytest.mark.parametrize(
    ("method", "origin"),
    [("POST", None), ("POST", "http://here:8080"), ("GET", "http://evil.example")],
)
def test_programs_own_pages_and_reading_are_let_in(method: str, origin: str | None) -> None:
    check_origin(method, origin, "here:8080")


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://here:9090", "", "http://["]
)
def test_a_page_of_another_site_may_change_nothing(origin: str) -> None:
    with pytest.raises(ForeignOrigin):
        check_origin("POST", origin, "here:8080")


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8080", "[::1]:8080", "localhost:8080", "box", "box.local", "10.0.0.7:1", ""]
)
def test_names_of_this_machine_are_let_in(host: str) -> None:
    check_host(host, "127.0.0.1")
    check_host(host, "::1")


@pytest.mark.parametrize("host", ["evil.example:8080", "localhost.evil.example", "[::1", "[a.b]"])
def test_a_strangers_name_for_loopback_is_refused(host: str) -> None:
    with pytest.raises(ForeignOrigin):
        check_host(host, "127.0.0.1")


def test_beyond_loopback_any_name_will_do() -> None:
    check_host("butterfly.example:8080", "10.0.0.7")


def test_a_harmless_request_id_is_kept_and_another_replaced() -> None:
    assert accept_request_id("abc-1:2/3") == "abc-1:2/3"
    for bad in (None, "", "a b", "x" * 129, "a\r\nSet-Cookie: b", "é"):
        assert accept_request_id(bad).startswith("req-")
    assert accept_request_id(None) != accept_request_id(None)
