"""Takes settings from a TOML file, from ``BUTTERFLY_SECTION_KEY`` variables and from flags.

The result is what people wrote, each value with the place it stands, and nothing is judged
but names: a name nobody knows is a problem, with the nearest known one beside it.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from butterfly.config.problems import Problem, nearest, refuse
from butterfly.config.schema import SECTIONS, annotation_of, keys_of
from butterfly_core.errors import ConfigError

FLAGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bind": "node.bind_address",
        "cluster_name": "cluster.cluster_name",
        "data_dir": "node.data_dir",
        "http": "node.http_address",
        "log_level": "node.log_level",
        "model_path": "model.source_path",
        "role": "node.role",
        "seed_nodes": "cluster.seed_nodes",
    }
)
"""Flags of a command line (argparse's names) and the ``section.key`` each one sets."""

FILE_BYTES_MAX: Final = 1 << 20

_PREFIX = "BUTTERFLY_"
# Kubernetes writes such variables for every service; one named `butterfly…` must not stop a node.
_SERVICE_LINK = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$"
)
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_LIKE_A_KNOWN_ONE = 0.8


@dataclass(frozen=True, slots=True)
class Setting:
    """One value as written. ``base`` is the folder that a relative path in it starts from."""

    section: str
    key: str
    value: object
    origin: str
    where: str
    base: Path

    @property
    def name(self) -> str:
        return f"{self.section}.{self.key}"


Found = Iterator[Setting | Problem]


def read_file(path: Path) -> Found:
    """The settings of a TOML file. Raises ConfigError when it cannot be read as TOML at all."""
    origin = str(path)
    for section, body in _parse_toml(path).items():
        if section not in SECTIONS:
            yield Problem(f"{origin}: {_top_level(section, body)}", _unknown_section(section, body))
        elif not isinstance(body, dict):
            message = f"must be a section: write [{section}] on a line of its own"
            yield Problem(f"{origin}: {section}", message, body)
        else:
            for key, value in body.items():
                where = f"{origin}: [{section}] {key}"
                if key in keys_of(section):
                    yield Setting(section, key, value, origin, where, path.absolute().parent)
                else:
                    yield Problem(where, _unknown_key(section, key), value)


def read_environment(environ: Mapping[str, str]) -> Found:
    """The settings of ``BUTTERFLY_…`` variables; an empty one counts as not set."""
    known = {f"{section}_{key}".upper(): (section, key) for section, key in _all_keys()}
    for variable in sorted(environ):
        name = variable.removeprefix(_PREFIX)
        if name == variable or _SERVICE_LINK.search(name) or not environ[variable].strip():
            continue
        where = f"environment variable {variable}"
        if name in known:
            section, key = known[name]
            value = value_of_text(section, key, environ[variable])
            yield Setting(section, key, value, f"environment {variable}", where, Path.cwd())
        elif (near := _near_variable(name, known)) is not None:
            yield Problem(where, f"unknown; {near}", environ[variable])


def read_flags(flags: Mapping[str, Any]) -> Found:
    """The settings of flags: names of ``FLAGS`` or ``section.key``; None counts as not given."""
    for flag, value in flags.items():
        if value is None:
            continue
        name = FLAGS.get(flag.replace("-", "_"), flag)
        section, _, key = name.partition(".")
        where = f"flag --{flag.replace('_', '-')}" if name != flag else f"setting {flag}"
        if section not in SECTIONS or key not in keys_of(section):
            known = [*FLAGS, *(f"{section}.{key}" for section, key in _all_keys())]
            yield Problem(where, f"unknown{_perhaps(nearest(flag, known))}", value)
            continue
        is_text = isinstance(value, str | Path)
        read = value_of_text(section, key, str(value)) if is_text else value
        yield Setting(section, key, read, where, where, Path.cwd())


def value_of_text(section: str, key: str, text: str) -> object:
    """Text of a variable or flag in the type of its key; left as text when it does not read so."""
    kind, text = annotation_of(section, key), text.strip()
    try:
        if kind is bool:
            return {**dict.fromkeys(_TRUE, True), **dict.fromkeys(_FALSE, False)}[text.lower()]
        if kind is int or kind is float:
            return kind(text)
    except (ValueError, KeyError):
        return text
    if str(kind).startswith("tuple"):
        return [entry.strip() for entry in text.split(",") if entry.strip()]
    return text


def _parse_toml(path: Path) -> Mapping[str, object]:
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or "cannot be read"
        advice = "copy an example from configs/ or give --config the right path"
        raise ConfigError(f"{path}: {reason}; {advice}") from error
    if len(content) > FILE_BYTES_MAX:
        raise refuse([Problem(str(path), f"longer than {FILE_BYTES_MAX} bytes; is it this file?")])
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise refuse([Problem(str(path), f"not UTF-8 text: {error.reason}")]) from error
    except tomllib.TOMLDecodeError as error:
        raise refuse([Problem(str(path), f"not valid TOML: {error}")]) from error


def _all_keys() -> Iterator[tuple[str, str]]:
    for section in SECTIONS:
        for key in keys_of(section):
            yield section, key


def _top_level(name: str, body: object) -> str:
    return f"[{name}]" if isinstance(body, dict) else name


def _unknown_section(name: str, body: object) -> str:
    sections = ", ".join(f"[{section}]" for section in SECTIONS)
    if isinstance(body, dict):
        near = nearest(name, SECTIONS)
        return f"unknown section{_perhaps(near and f'[{near}]')}; known are {sections}"
    near = _elsewhere(name)
    return f"stands outside of a section{_perhaps(near)}; known are {sections}"


def _unknown_key(section: str, key: str) -> str:
    inside = nearest(key, keys_of(section))
    elsewhere = _elsewhere(key)
    exact = elsewhere is not None and elsewhere.endswith(f"] {key}")
    near = elsewhere if exact or inside is None else inside
    return f"unknown key{_perhaps(near)}; [{section}] knows {', '.join(keys_of(section))}"


def _elsewhere(key: str) -> str | None:
    """The section and key most like this one, in any section."""
    by_key = {known: section for section, known in _all_keys()}
    near = nearest(key, by_key)
    return near and f"[{by_key[near]}] {near}"


def _near_variable(name: str, known: Mapping[str, object]) -> str | None:
    """Advice about a variable that was meant for us; None for one that was not."""
    prefixes = [f"{section.upper()}_" for section in SECTIONS]
    own = [f"{prefix}{name}" for prefix in prefixes if f"{prefix}{name}" in known]
    ours = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    if not own and ours:
        near = nearest(name.removeprefix(ours), keys_of(ours[:-1].lower()))
        own = [f"{ours}{near}".upper()] if near else []
    if not own:
        near = nearest(name, (word.lower() for word in known), cutoff=_LIKE_A_KNOWN_ONE)
        own = [near.upper()] if near else []
    if own:
        return f"did you mean {_PREFIX}{own[0]}?"
    return "the names are BUTTERFLY_SECTION_KEY, as BUTTERFLY_NODE_ROLE" if ours else None


def _perhaps(near: str | None) -> str:
    return f"; did you mean {near}?" if near else ""
