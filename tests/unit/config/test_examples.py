"""Every example of configs/ loads, once the files it names exist."""

from pathlib import Path

import pytest

from butterfly.config import NodeConfig, describe, load_config
from butterfly_core.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"
EXAMPLES = sorted(path.name for path in CONFIGS.glob("*.toml"))


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A stand-in for /etc/butterfly with the secrets that examples name."""
    for name in ("cluster.secret", "api.keys"):
        (tmp_path / name).write_text("0123456789abcdef0123456789abcdef\n")
    return tmp_path


def load(name: str, etc: Path) -> NodeConfig:
    text = (CONFIGS / name).read_text().replace("/etc/butterfly", str(etc))
    copy = etc / name
    copy.write_text(text)
    return load_config(copy, environ={}, flags={})


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_loads(name: str, etc: Path) -> None:
    assert load(name, etc).cluster.cluster_name


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_described_loads_to_the_same(name: str, etc: Path) -> None:
    config = load(name, etc)
    again = etc / "again.toml"
    again.write_text(describe(config))

    assert load_config(again, environ={}, flags={}).model_dump() == config.model_dump()


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_table_of_examples_names_it(name: str) -> None:
    assert f"`{name}`" in (CONFIGS / "README.md").read_text()


def test_every_mode_has_an_example(etc: Path) -> None:
    loaded = [load(name, etc) for name in EXAMPLES]

    types = {config.model.source_type for config in loaded}
    assert types == {"embedded", "filesystem", "s3", "http", "huggingface"}
    methods = {config.cluster.discovery_method for config in loaded}
    assert methods == {"static", "dns", "consul", "multicast"}
    assert {config.node.role for config in loaded} == {"coordinator", "worker"}
    assert any(config.model.endpoint_url for config in loaded)
    assert any(config.security.api_keys_file for config in loaded)
    assert any(config.security.insecure for config in loaded)


@pytest.mark.parametrize("name", ["open-network.toml", "coordinator.toml", "equal-nodes.toml"])
def test_an_example_with_secrets_is_refused_while_they_are_missing(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.secret does not exist"):
        load(name, tmp_path)
