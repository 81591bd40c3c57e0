"""Tokens for servers that want one: where they are found, and whom they are shown."""

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from butterfly_core.errors import ConfigError, SourceError
from butterfly_weights.http_answers import Refusal, error_of

HTTP_TOKEN_VARIABLE = "BUTTERFLY_HTTP_TOKEN"
_TOKEN_BYTES_MAX = 65_536
_AGENT = {"User-Agent": "butterfly"}
_ADVICE = {
    "HTTP 401": f"the server wants a token it knows: set {HTTP_TOKEN_VARIABLE}",
    "HTTP 403": "the server does not let this node read it: ask whoever runs it for access",
    "HTTP 404": "the file does not exist: check [model] source_path",
    "HTTP 405": "the server must allow GET and HEAD",
    "HTTP 410": "the file is gone: check [model] source_path",
}


@dataclass(frozen=True, slots=True)
class Token:
    """A secret, and where it was found."""

    secret: str
    found_in: str

    def __repr__(self) -> str:
        return f"Token({self.masked})"

    @property
    def masked(self) -> str:
        shown = f"{self.secret[:4]}…{self.secret[-2:]}" if len(self.secret) > 12 else "…"
        return f"token {shown} from {self.found_in}"


class BearerSigner:
    """Adds ``Authorization: Bearer``, but never where others on the way could read it."""

    def __init__(self, base_url: str, token: Token | None) -> None:
        self._open = not _is_private(base_url)
        self._token = None if self._open else token
        self._kept_back = token if self._open else None

    @property
    def who(self) -> str:
        """Whose requests these are, for messages; never a secret."""
        if self._kept_back:
            return f"{self._kept_back.masked} was not sent: http:// would show it to others"
        return self._token.masked if self._token else "without a token"

    @property
    def has_token(self) -> bool:
        return self._token is not None

    def headers(self, _method: str, _url: str, headers: Mapping[str, str]) -> dict[str, str]:
        own = {"Authorization": f"Bearer {self._token.secret}"} if self._token else {}
        return {**headers, **_AGENT, **own}

    def refresh(self) -> bool:
        return False

    def refused(self, refusal: Refusal, what: str) -> SourceError:
        """The error that a refusal means."""
        plain = Refusal(refusal.status, f"HTTP {refusal.status}", refusal.headers)
        return error_of(plain, what, who=self.who, advice_of=_ADVICE)


def http_token(environ: Mapping[str, str] = os.environ) -> Token | None:
    """The token for ``source_type = "http"``. Raises ConfigError."""
    return _token(environ.get(HTTP_TOKEN_VARIABLE, ""), HTTP_TOKEN_VARIABLE)


def hub_token(environ: Mapping[str, str] = os.environ) -> Token | None:
    """The token for the hub, as huggingface_hub finds it: HF_TOKEN, else the file that
    ``hf auth login`` wrote. Raises ConfigError."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if found := _token(environ.get(name, ""), name):
            return found
    path = Path(environ.get("HF_TOKEN_PATH") or hub_home(environ) / "token")
    try:
        with path.open("rb") as file:
            content = file.read(_TOKEN_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"the hub's token {path} cannot be read: {error.strerror}") from error
    return _token(content.decode("latin-1"), str(path))


def hub_home(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder where huggingface_hub keeps what it knows."""
    if home := environ.get("HF_HOME"):
        return Path(os.path.expandvars(home)).expanduser()
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface"


def _token(text: str, found_in: str) -> Token | None:
    secret = text.strip()
    if not secret:
        return None
    if not secret.isascii() or any(c <= " " or c == "\x7f" for c in secret):
        raise ConfigError(f"{found_in} holds no token: it has spaces or odd characters in it")
    return Token(secret, found_in)


def _is_private(url: str) -> bool:
    """True when nobody between could read what is sent."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
