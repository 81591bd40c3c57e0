from pathlib import Path

import pytest

from butterfly.config import load_config
from butterfly_core.address import Address
from butterfly_core.errors import ConfigError

MINIMAL = """
[cluster]
cluster_name = "demo"
seed_nodes = ["127.0.0.1:7000"]
[model]
source_type = "embedded"
source_path = "toy-llama"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(MINIMAL)
    return path


def test_a_short_file_is_enough_and_the_rest_has_defaults(file: Path) -> None:
    config = load_config(file, environ={}, flags={})

    assert config.cluster.seed_nodes == (Address("127.0.0.1", 7000),)
    assert config.node.role == "worker"
    assert config.node.advertise_address == config.node.bind_address == Address("127.0.0.1", 7000)
    assert config.model.name == "toy-llama"
    assert config.engine.kv_cache_tokens == 16384


def test_the_environment_overrides_the_file_and_a_flag_overrides_both(file: Path) -> None:
    environ = {"BUTTERFLY_CLUSTER_CLUSTER_NAME": "two", "BUTTERFLY_NODE_CAPACITY": "0.25"}

    config = load_config(file, environ=environ, flags={"cluster_name": "three", "role": None})

    assert config.cluster.cluster_name == "three"
    assert config.node.capacity == 0.25
    assert config.origin("cluster", "cluster_name") == "flag --cluster-name"
    assert config.origin("node", "capacity") == "environment BUTTERFLY_NODE_CAPACITY"
    assert config.origin("model", "source_path") == str(file)
    assert config.origin("node", "role") == "default"


def test_an_unknown_key_is_refused_beside_the_key_it_resembles(file: Path) -> None:
    file.write_text(MINIMAL + '[node]\nbind_adress = "127.0.0.1:7001"\n')

    with pytest.raises(ConfigError, match="did you mean bind_address"):
        load_config(file, environ={}, flags={})


def test_trusted_keys_are_found_beside_the_file_that_names_them(tmp_path: Path) -> None:
    (tmp_path / "publisher.pub").write_text("a key")
    file = tmp_path / "node.toml"
    file.write_text(MINIMAL.replace("[model]", '[model]\ntrusted_keys = ["publisher.pub"]', 1))

    config = load_config(file, environ={}, flags={})

    assert config.model.trusted_keys == (tmp_path / "publisher.pub",)
    elsewhere = {"BUTTERFLY_MODEL_TRUSTED_KEYS": f"{tmp_path}/publisher.pub, {file}"}
    loaded = load_config(file, environ=elsewhere, flags={})
    assert loaded.model.trusted_keys == (tmp_path / "publisher.pub", file)
