"""Names that stay inside a source, and sources that can be opened."""

from pathlib import Path

import pytest

from butterfly_core.errors import ConfigError, ModelError
from butterfly_weights.source import SourceOptions, open_source, safe_name


@pytest.mark.parametrize("name", ["model.safetensors", "a b", "ü", "..a", "sub/x.safetensors"])
def test_a_plain_name_is_taken(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a/", "a\\b", "a\0b", "x" * 2000],
)
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="not a plain file name"):
        safe_name(name)


def test_a_source_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    embedded = SourceOptions(embedded_root=tmp_path)
    for source_type, path, options, says in (
        ("ftp", "x", SourceOptions(), "not one of s3, filesystem, http, huggingface, embedded"),
        ("s3", "s3://", SourceOptions(), "names no bucket"),
        ("embedded", "demo", SourceOptions(), "folder of the packaged models"),
        ("embedded", "other", embedded, "known: .'demo'."),
    ):
        with pytest.raises(ConfigError, match=says):
            open_source(source_type, path, options=options)
    with pytest.raises(ConfigError, match="endpoint_url"):
        open_source("filesystem", "x", endpoint_url="http://localhost")
    assert "demo" in open_source("embedded", "demo", options=embedded).describe()
