"""Merges what was written (file < environment < flags), judges it, and makes a NodeConfig.

Every problem of every section is found before anything is refused.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from butterfly.config.discovery_schema import DiscoverySection
from butterfly.config.fields import Section
from butterfly.config.model_name import name_of_source
from butterfly.config.problems import Problem, refuse
from butterfly.config.reading import Setting, read_environment, read_file, read_flags
from butterfly.config.rules import Parts, broken_rules
from butterfly.config.schema import (
    ADMISSION_LEASE_SECONDS,
    SECTIONS,
    ClusterSection,
    EngineSection,
    ModelSection,
    NodeConfig,
    NodeSection,
    SecuritySection,
    allowed,
    with_origins,
)

_PATH_KEYS = frozenset(
    {
        "node.data_dir",
        "security.cluster_secret_file",
        "security.ca_file",
        "security.certificate_file",
        "security.private_key_file",
        "security.api_keys_file",
        "discovery.consul_token_file",
        "discovery.consul_ca_file",
        "discovery.consul_certificate_file",
        "discovery.consul_key_file",
    }
)
_PATH_LIST_KEYS = frozenset({"model.trusted_keys"})
_KINDS = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text in quotes",
    "is_instance_of": "text in quotes",
    "path_type": "text in quotes",
}


def load_config(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    flags: Mapping[str, Any],
) -> NodeConfig:
    """Read one node's configuration; a later source overrides: file, ``environ``, ``flags``.

    Flags are named as in ``FLAGS`` or ``section.key``; None is a flag not given. A relative
    path counts from the folder of the file it stands in. Raises ConfigError with every
    problem at once: where it stands, what was written, what is allowed.
    """
    problems: list[Problem] = []
    settings: dict[str, Setting] = {}
    sources = (read_file(path) if path else iter(()), read_environment(environ), read_flags(flags))
    for source in sources:
        for found in source:
            if isinstance(found, Setting):
                settings[found.name] = found
            else:
                problems.append(found)
    judge = _Judge(settings, problems, path)
    parts = _with_derived_defaults(
        Parts(
            judge.section("cluster", ClusterSection),
            judge.section("discovery", DiscoverySection),
            judge.section("model", ModelSection),
            judge.section("node", NodeSection),
            judge.section("engine", EngineSection),
            judge.section("security", SecuritySection),
        ),
        settings,
    )
    problems += broken_rules(parts, settings)
    if problems:
        raise refuse(problems)
    config = NodeConfig.model_validate({name: getattr(parts, name) for name in SECTIONS})
    origins = {s.name: s.origin for s in settings.values()}
    return with_origins(config, _derived_origins(origins))


S = TypeVar("S", bound=Section)


class _Judge:
    """Validates one section after the other, and keeps what was wrong."""

    def __init__(
        self, settings: Mapping[str, Setting], problems: list[Problem], path: Path | None
    ) -> None:
        self._settings = settings
        self._problems = problems
        self._path = path

    def section(self, name: str, kind: type[S]) -> S | None:
        written = {s.key: s for s in self._settings.values() if s.section == name}
        values = {key: _anchored(setting, self._settings) for key, setting in written.items()}
        try:
            return kind.model_validate(values)
        except ValidationError as error:
            self._problems += _explained(name, written, error, self._path)
            return None


def _anchored(setting: Setting, settings: Mapping[str, Setting]) -> object:
    """The value, a relative path made absolute from where it was written."""
    if setting.name in _PATH_LIST_KEYS and isinstance(setting.value, list):
        return [_absolute(setting, e) if isinstance(e, str) else e for e in setting.value]
    if not isinstance(setting.value, str) or not setting.value.strip():
        return setting.value
    if setting.name in _PATH_KEYS:
        return Path(_absolute(setting, setting.value))
    source = settings.get("model.source_type")
    is_folder = source is not None and source.value == "filesystem"
    if setting.name == "model.source_path" and is_folder and "://" not in setting.value:
        return _absolute(setting, setting.value)
    return setting.value


def _absolute(setting: Setting, path: str) -> str:
    return os.path.normpath(setting.base / os.path.expanduser(path))


def _with_derived_defaults(parts: Parts, settings: Mapping[str, Setting]) -> Parts:
    """What is not said but follows: the advertised address, the model's name, the lease."""
    cluster, node, model = parts.cluster, parts.node, parts.model
    if cluster and "cluster.admission_lease_seconds" not in settings:
        lease = ADMISSION_LEASE_SECONDS[cluster.profile]
        cluster = cluster.model_copy(update={"admission_lease_seconds": lease})
    if node and "node.advertise_address" not in settings:
        node = node.model_copy(update={"advertise_address": node.bind_address})
    if model and not model.name:
        name = name_of_source(model.source_type, model.source_path)
        model = model.model_copy(update={"name": name})
    return replace(parts, cluster=cluster, node=node, model=model)


def _derived_origins(origins: dict[str, str]) -> dict[str, str]:
    return {
        "cluster.admission_lease_seconds": "from profile",
        "node.advertise_address": "from bind_address",
        "model.name": "from source_path",
        **origins,
    }


def _explained(
    section: str, written: Mapping[str, Setting], error: ValidationError, path: Path | None
) -> Iterator[Problem]:
    for detail in error.errors(include_url=False):
        key = str(detail["loc"][0])
        if key in written:
            value = written[key].value
            yield Problem(written[key].where, _allowed(section, key, detail), value)
        else:
            file = f"{path}: " if path else ""
            variable = f"BUTTERFLY_{section}_{key}".upper()
            hint = _allowed(section, key, detail)
            message = f"missing; {hint} (in the file, or as {variable})"
            yield Problem(f"{file}[{section}] {key}", message)


def _allowed(section: str, key: str, detail: ErrorDetails) -> str:
    """What may stand there, from the kind of error and the key's description."""
    context = detail.get("ctx", {})
    if detail["type"] == "literal_error":
        return f"must be {context['expected']}".replace("'", '"')
    if detail["type"] == "value_error":
        return str(context["error"])
    words = allowed(section, key)
    if detail["type"] == "missing":
        return f"it must be set: {words}" if words else "it must be set"
    kind = _KINDS.get(detail["type"])
    both = " — ".join(part for part in (kind, words) if part)
    return f"must be {both}" if both else detail["msg"]
