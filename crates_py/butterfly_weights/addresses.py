"""Where a model may be, as a person writes it: web addresses and names on the hub. Pure."""

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from butterfly_core.errors import ConfigError

MAIN = "main"
_NAME = re.compile(
    r"(?:hf://)?(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})"
    r"(?:@(?P<revision>[\w][\w./+-]{0,255}))?",
    re.ASCII,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubName:
    """A model on the hub: ``org/name``, and a branch, tag or commit of it."""

    repo: str
    revision: str = MAIN

    @property
    def commit(self) -> str | None:
        """The revision, when it is a whole commit and can mean nothing else."""
        return self.revision if is_commit(self.revision) else None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


def is_commit(text: str) -> bool:
    return _COMMIT.fullmatch(text) is not None


def parse_hub_name(text: str) -> HubName:
    """From ``org/name`` or ``org/name@revision``, with or without hf://. Raises ConfigError."""
    found = _NAME.fullmatch(text)
    if not found or ".." in text:
        raise ConfigError(
            f"source_path {text!r} must be org/name or org/name@revision, as "
            "Qwen/Qwen3-8B or hf://Qwen/Qwen3-8B@main"
        )
    return HubName(found["repo"], found["revision"] or MAIN)


def plain_url(text: str, key: str) -> str:
    """An http:// or https:// URL that carries no secret. Raises ConfigError."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not text.isascii() or any(c <= " " for c in text):
        raise ConfigError(f"{key} {text!r} must be a URL, as https://models.example.com/qwen3-8b")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(
            f"{key} must be a plain URL: no user name, no password, nothing after ? or # (it is "
            "shown in /status; a token goes into the environment)"
        )
    return text.rstrip("/")
