"""Every command line that a document shows is one that the commands accept."""

import re
import shlex
from pathlib import Path

import pytest

from butterfly.admin.main import _parser as admin_parser
from butterfly.node.main import _parser as node_parser

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "specs").rglob("*.md"))]
IN_BACKTICKS = re.compile(r"`(butterfly-(?:admin|node) [^`]+)`")
IN_A_BLOCK = re.compile(r"^(butterfly-(?:admin|node) .+)$", re.MULTILINE)


def shown() -> list[str]:
    texts = [document.read_text() for document in DOCUMENTS]
    lines = {line for text in texts for p in (IN_BACKTICKS, IN_A_BLOCK) for line in p.findall(text)}
    return sorted(" ".join(line.partition("#")[0].split()) for line in lines)


@pytest.mark.parametrize("line", shown())
def test_a_shown_command_is_accepted(line: str) -> None:
    program, *words = shlex.split(line)

    if program == "butterfly-node":
        node_parser().parse_args(words)
    else:
        admin_parser(words[0]).parse_args(words)


def test_the_search_finds_commands() -> None:
    assert "butterfly-admin status --watch" in shown()
    assert "butterfly-node --config node.toml --check" in shown()
