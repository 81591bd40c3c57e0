"""Tokens: where they are found, and to whom they are shown."""

from pathlib import Path

import pytest

from butterfly_core.errors import ConfigError
from butterfly_weights.addresses import plain_url
from butterfly_weights.bearer import BearerSigner, Token, http_token, hub_token

SECRET = "averysecrettoken"


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://models.example.com", True),
        ("http://localhost:8000", True),
        ("http://127.0.0.1", True),
        ("http://[::1]:80", True),
        ("http://10.0.0.1", False),
        ("http://localhost.example.com", False),
    ],
)
def test_a_token_is_sent_only_where_nobody_can_read_it(url: str, sent: bool) -> None:
    signer = BearerSigner(url, Token(SECRET, "X"))

    assert ("Authorization" in signer.headers("GET", url, {})) is sent
    assert ("was not sent" in signer.who) is not sent
    assert signer.has_token is sent


def test_a_token_is_never_shown_whole() -> None:
    token = Token(SECRET, "X")

    assert SECRET not in f"{token} {token!r} {BearerSigner('https://h', token).who}"
    assert Token("short", "X").masked == "token … from X"


def test_tokens_are_found_where_they_should_be(tmp_path: Path) -> None:
    (tmp_path / "huggingface").mkdir()
    (tmp_path / "huggingface" / "token").write_text("from-file\n")
    home = {"XDG_CACHE_HOME": str(tmp_path)}

    assert http_token({}) is None
    assert http_token({"BUTTERFLY_HTTP_TOKEN": f" {SECRET}\n"}) == Token(
        SECRET, "BUTTERFLY_HTTP_TOKEN"
    )
    assert hub_token({"HF_HOME": str(tmp_path / "none")}) is None
    assert hub_token({"HF_TOKEN": SECRET, **home}) == Token(SECRET, "HF_TOKEN")
    found = hub_token(home)
    assert found is not None
    assert found.secret == "from-file"


@pytest.mark.parametrize("secret", ["a b", "a\nb: c", "a\x00", "ü"])
def test_what_would_be_another_header_is_no_token(secret: str) -> None:
    with pytest.raises(ConfigError, match="BUTTERFLY_HTTP_TOKEN holds no token"):
        http_token({"BUTTERFLY_HTTP_TOKEN": secret})


@pytest.mark.parametrize(
    "url",
    [
        "",
        "models",
        "ftp://h/x",
        "http://",
        "http://h:0/x",
        "http://h:x",
        "http://[::1",
        "http://h/a b",
        "http://u:p@h/x",
        "https://h/x?sig=1",
        "https://h/x#y",
        "http://h/\x00",
        "https://ü/x",
    ],
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="source_path"):
        plain_url(url, "source_path")
