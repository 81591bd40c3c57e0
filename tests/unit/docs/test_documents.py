"""What the documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DOCUMENTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        *(ROOT / "specs").rglob("*.md"),
        *(ROOT / "configs").glob("*.md"),
    ]
)
OUR_FOLDERS = ("butterfly", "configs", "crates_py", "specs", "tests", "tools")
IN_BACKTICKS = re.compile(r"`([^`\s]+)`")
LOOKS_LIKE_A_FILE = re.compile(r"[\w./-]*\w\.(?:py|md|sh|toml)/?|(?:[\w.-]+/)+")
UNDER_OUR_FOLDERS = re.compile(r"\b(?:configs|crates_py|specs|tests|tools)/[\w./-]*[\w/]")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)[^)]*\)")
README_LINES_MAX, PAGE_LINES_MAX = 150, 200


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def files() -> list[str]:
    """Every file of the tree, as ``/path/from/the/root``."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in OUR_FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [f"/{relative(path)}" for path in found]


def is_there(name: str, known: list[str]) -> bool:
    """Whole, or the end of a path, as ``node/main.py`` for ``butterfly/node/main.py``."""
    return any(f"/{name.rstrip('/')}/" in f"{path}/" for path in known)


@pytest.fixture(scope="module")
def known() -> list[str]:
    return files()


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_file_that_a_document_names_exists(document: Path, known: list[str]) -> None:
    text = document.read_text()
    named = {word for word in IN_BACKTICKS.findall(text) if LOOKS_LIKE_A_FILE.fullmatch(word)}
    named |= set(UNDER_OUR_FOLDERS.findall(text))

    assert [name for name in sorted(named) if not is_there(name, known)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_link_leads_to_a_file(document: Path) -> None:
    links = LINK.findall(document.read_text())

    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_a_document_is_short_enough_to_be_read(document: Path) -> None:
    limit = README_LINES_MAX if document == ROOT / "README.md" else PAGE_LINES_MAX

    assert document.read_text().count("\n") < limit


def test_the_search_for_names_finds_what_is_missing(known: list[str]) -> None:
    assert is_there("butterfly/node/main.py", known)
    assert is_there("node/main.py", known)
    assert is_there("butterfly/node/", known)
    assert not is_there("ode/main.py", known)
    assert not is_there("butterfly/node/nothing.py", known)
