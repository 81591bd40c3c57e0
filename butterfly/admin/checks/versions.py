"""Versions: Python, the packages Butterfly names, and the other members. Imports none of them."""

import platform
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

from butterfly import __version__
from butterfly.admin.checks.finding import Finding, failed, passed, warned
from butterfly.admin.checks.situation import Situation
from butterfly.admin.status_view import members_of
from butterfly_core.errors import ButterflyError
from butterfly_core.ids import short

PYTHON_MIN = (3, 11)
WATCHED = ("torch", "transformers", "pysyncobj", "aiohttp", "boto3", "safetensors", "tokenizers")


def look_at_versions(situation: Situation) -> Sequence[Finding]:
    """This installation, then every member that can be asked."""
    wanted = requirements(metadata.requires("butterfly") or ())
    packages = [_package(name, wanted.get(name)) for name in WATCHED]
    return [_python(), *packages, *_members(situation)]


def requirements(lines: Sequence[str]) -> Mapping[str, Requirement]:
    """The requirements that hold without extras, by package name."""
    found = {}
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            found[requirement.name] = requirement
    return found


def _python() -> Finding:
    seen = f"{platform.python_version()} ({sys.executable})"
    if sys.version_info < PYTHON_MIN:
        return failed("Python", seen, "Butterfly needs Python 3.11 or newer")
    return passed("Python", seen)


def _package(name: str, wanted: Requirement | None) -> Finding:
    range_text = str(wanted.specifier) if wanted else ""
    install = f"pip install '{name}{range_text}'"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return failed(name, "not installed", install)
    if wanted and not wanted.specifier.contains(version, prereleases=True):
        return failed(name, f"{version}, but Butterfly needs {range_text}", install)
    return passed(name, f"{version}{f' (needs {range_text})' if range_text else ''}")


def _members(situation: Situation) -> list[Finding]:
    try:
        status = situation.node.status()
    except ButterflyError:  # no node runs here
        return []
    return [_member(member) for member in members_of(status)]


def _member(member: Mapping[str, Any]) -> Finding:
    name = f"version of {short(str(member.get('node_id')))}"
    version = member.get("version")
    if version == __version__:
        return passed(name, str(version))
    seen = f"{version} at {member.get('address')}, {__version__} here"
    return warned(name, seen, "run one version on all nodes")
