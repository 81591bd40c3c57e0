"""pysyncobj is pinned, tamed and touched in one file; an upgrade fails here first."""

import ast
import inspect
import re
from pathlib import Path

import pysyncobj.pickle
import pysyncobj.syncobj
import pytest

import butterfly_cluster.raft_sync as raft_sync
from butterfly_core.errors import ProtocolViolation

CRATE = Path(raft_sync.__file__).parent
SOURCE = inspect.getsource(pysyncobj.syncobj)
USED_ELSEWHERE = re.compile(r"""\b(?:core|self|self\.core)\.[gs]et\(\s*f?"([^"]+)\"""")


def test_the_version_is_the_one_that_was_audited() -> None:
    assert raft_sync.INSTALLED_VERSION == raft_sync.PINNED_VERSION == "0.3.17"


@pytest.mark.parametrize("name", sorted(raft_sync.PRIVATE_ATTRIBUTES))
def test_a_private_attribute_is_still_there(name: str) -> None:
    assert re.search(rf"self\.__{name}\b|def __{name}\b", SOURCE)


def test_no_private_attribute_is_used_that_is_not_listed() -> None:
    used = set(re.findall(r"_SyncObj__(\w+)", (CRATE / "raft_sync.py").read_text()))
    for source in CRATE.glob("*.py"):
        used |= set(USED_ELSEWHERE.findall(source.read_text()))
    composed = {name for name in used if "{" in name}

    assert composed <= {"on{gone}NodeDisconnected", "on{here}NodeConnected"}
    assert used - composed <= raft_sync.PRIVATE_ATTRIBUTES


def test_one_file_alone_imports_it() -> None:
    importing = set()
    for source in CRATE.glob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            if any(name.split(".")[0] == "pysyncobj" for name in names):
                importing.add(source.name)

    assert importing == {"raft_sync.py"}


@pytest.mark.parametrize("name", ["load", "loads", "dump", "dumps"])
def test_its_pickle_is_gone(name: str) -> None:
    with pytest.raises(ProtocolViolation, match="not used here"):
        getattr(pysyncobj.pickle, name)(b"")


def test_its_passwords_are_gone() -> None:
    with pytest.raises(ProtocolViolation, match="not used here"):
        pysyncobj.syncobj.getEncryptor("secret")
