"""How to reach a Consul agent and how patient to be with it. Checked when it is made."""

import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from butterfly_core.errors import InvalidValue, Unreachable
from butterfly_discovery.dialable import dialable

TOKEN_CHARACTERS_MAX = 4096
_PORTS = {"http": 8500, "https": 8501}
_SERVICE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_DATACENTER = re.compile(r"[A-Za-z0-9_-]{0,64}")
_TOKEN = re.compile(rf"[\x21-\x7e]{{0,{TOKEN_CHARACTERS_MAX}}}")


def no_token() -> str:
    """For a Consul without ACLs."""
    return ""


@dataclass(frozen=True, slots=True)
class ConsulSettings:
    """An agent, what is asked of it, and limits.

    ``url``: ``http://host:port`` or ``https://host:port`` of an agent, best the one of this
    machine; without a port 8500 or 8501. ``token`` gives the ACL token, anew for each question,
    "" without ACLs; it runs in a thread and may read a file. With ``ca_file`` only this CA is
    trusted, otherwise the system's.

    A node that no longer says it lives vanishes after ``ttl_seconds`` and is forgotten after
    ``forget_seconds`` (Consul takes no less than 60). ``wait_seconds`` is how long Consul may hold
    a question when nothing changes; ``timeout_seconds`` is the limit of everything else.

    Raises InvalidValue when a value cannot be right.
    """

    url: str = "http://127.0.0.1:8500"
    token: Callable[[], str] = no_token
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    service: str = "butterfly"
    datacenter: str = ""
    ttl_seconds: float = 15.0
    forget_seconds: float = 600.0
    wait_seconds: float = 30.0
    timeout_seconds: float = 5.0
    pause_seconds: float = 0.5
    """At least so long between two answers, however fast Consul changes."""
    retry_seconds_max: float = 15.0
    leave_seconds: float = 2.0
    """For saying good-bye when the node stops."""
    answer_bytes_max: int = 4 << 20

    def __post_init__(self) -> None:
        _check_url(self.url)
        if self.certificate_file is None and self.key_file is not None:
            raise InvalidValue("Consul: a client key needs its certificate; name both files")
        tls_files = (self.ca_file, self.certificate_file)
        if self.scheme == "http" and any(tls_files):
            raise InvalidValue(f"Consul at {self.url}: TLS files are given; write https:// in url")
        if not _SERVICE.fullmatch(self.service):
            raise InvalidValue(
                f"Consul service {self.service!r}: write up to 63 letters, digits and dashes"
            )
        if not _DATACENTER.fullmatch(self.datacenter):
            raise InvalidValue(
                f"Consul datacenter {self.datacenter!r}: write up to 64 letters, digits, - and _"
            )
        if not 1 <= self.ttl_seconds <= 3600 or not 60 <= self.forget_seconds <= 604800:
            raise InvalidValue("Consul: ttl_seconds is 1 to 3600, forget_seconds 60 to 604800")
        if not 1 <= self.wait_seconds <= 600:
            raise InvalidValue("Consul: wait_seconds is 1 to 600, as Consul has it")

    @property
    def scheme(self) -> str:
        """``http`` or ``https``."""
        return urlsplit(self.url).scheme

    @property
    def host(self) -> str:
        """As it stands in a URL: an IPv6 address in brackets."""
        name = urlsplit(self.url).hostname or ""
        return f"[{name}]" if ":" in name else name

    @property
    def port(self) -> int:
        """The one of the URL, or Consul's own for its scheme."""
        return urlsplit(self.url).port or _PORTS[self.scheme]

    @property
    def where(self) -> str:
        """For messages; holds no secret."""
        return f"Consul at {self.scheme}://{self.host}:{self.port}"


def token_from_file(path: Path) -> Callable[[], str]:
    """A token that is read anew each time, so that a changed file counts at once.

    What it gives raises Unreachable when the file cannot be read or is longer than a token.
    """

    def read() -> str:
        try:
            with path.open("rb") as file:
                content = file.read(TOKEN_CHARACTERS_MAX + 2)
            return content.decode("ascii").strip()
        except OSError as error:
            raise Unreachable(
                f"Consul token file {path}: {error.strerror}; make it readable for the node"
            ) from None
        except UnicodeDecodeError:
            # The error's text would show bytes of the file.
            raise Unreachable(f"Consul token file {path} does not hold a token") from None

    return read


def checked_token(token: str) -> str:
    """The token when it can be sent in a header. Raises Unreachable; never shows the token."""
    if not _TOKEN.fullmatch(token):
        raise Unreachable(
            "the Consul token is no line of up to "
            f"{TOKEN_CHARACTERS_MAX} printable characters; mend its file"
        )
    return token


def tls_context(settings: ConsulSettings) -> ssl.SSLContext | None:
    """Trust and client certificate for https, None for http. Reads files; raises Unreachable."""
    if settings.scheme != "https":
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.certificate_file is not None:
            # A password would be asked for at the terminal; "" makes that an error.
            context.load_cert_chain(settings.certificate_file, settings.key_file, lambda: "")
    except (OSError, ValueError) as error:
        files = (settings.ca_file, settings.certificate_file, settings.key_file)
        named = ", ".join(str(file) for file in files if file is not None)
        raise Unreachable(
            f"{settings.where}: cannot use the TLS files {named}: {error}; mend them"
        ) from error
    return context


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        sound = (
            parts.scheme in _PORTS
            and parts.port != 0
            and dialable(parts.hostname or "", parts.port or 1)
            and parts.username is None
            and parts.path in ("", "/")
            and not parts.query
            and not parts.fragment
        )
    except ValueError:
        sound = False
    if not sound or not url.isascii() or not url.isprintable() or " " in url:
        # Not shown: a password may stand in it.
        raise InvalidValue(
            "the Consul URL is wrong; write http://host:port or https://host:port, with no user, "
            "path or query (a token goes into its own file)"
        )
