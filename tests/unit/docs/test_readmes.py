"""Every crate's README says the four things, and what it shows runs as it stands."""

import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CRATES = Path(__file__).parents[3] / "crates_py"
READMES = sorted(CRATES.glob("butterfly_*/README.md"))
RESERVED = ("butterfly_fleet", "butterfly_remote")
WRITTEN = [readme for readme in READMES if readme.parent.name not in RESERVED]


def crate_of(readme: Path) -> str:
    return readme.parent.name


def examples_in(readme: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", readme.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files of an example go with the test, and so does what it does to logging."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize("readme", WRITTEN, ids=crate_of)
def test_a_crate_says_what_it_is_for_and_what_it_does_not_know(readme: Path) -> None:
    text = readme.read_text()

    for heading in ("For", "Does not know", "Always true", "Use"):
        assert re.search(rf"^\*\*{heading}:?\*\*", text, re.MULTILINE), heading


@pytest.mark.parametrize("readme", WRITTEN, ids=crate_of)
@pytest.mark.usefixtures("own_surroundings")
def test_what_a_crate_shows_runs(readme: Path) -> None:
    examples = examples_in(readme)

    assert examples, f"{readme} has no python example"
    for example in examples:
        exec(compile(example, str(readme), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("crate", RESERVED)
def test_a_reserved_crate_is_empty_and_says_so(crate: str) -> None:
    folder = CRATES / crate
    (init,) = folder.glob("**/*.py")

    assert "nothing here yet" in (folder / "README.md").read_text()
    assert "nothing here yet" in init.read_text()
