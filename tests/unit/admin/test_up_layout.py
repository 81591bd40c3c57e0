"""The configurations of a local cluster."""

import stat
from pathlib import Path

import pytest

from butterfly.admin.exits import UsageError
from butterfly.admin.model_source import ModelSource
from butterfly.admin.up_layout import (
    SECRET_FILE,
    ClusterLayout,
    lay_out,
    share_of_memory,
    without_overrides,
    write,
)
from butterfly.config import NodeConfig, load_config

TOY = ModelSource("embedded", "toy-llama")


def layout(directory: Path, count: int = 3, model: ModelSource = TOY) -> ClusterLayout:
    return lay_out(
        directory, model, count, port_base=7000, http_port_base=8080, is_free=lambda port: True
    )


def configs(made: ClusterLayout) -> list[NodeConfig]:
    write(made)
    return [load_config(node.config_path, environ={}, flags={}) for node in made.nodes]


def test_the_first_node_coordinates_and_the_others_look_for_it(tmp_path: Path) -> None:
    first, *others = configs(layout(tmp_path))

    assert first.node.role == "coordinator"
    assert first.cluster.seed_nodes == ()
    assert [config.node.role for config in others] == ["worker", "worker"]
    assert all(config.cluster.seed_nodes == (first.node.bind_address,) for config in others)


def test_all_nodes_wait_for_each_other_and_share_the_memory(tmp_path: Path) -> None:
    made = configs(layout(tmp_path))

    assert {config.cluster.quorum_size for config in made} == {2}
    assert sum(config.node.capacity for config in made) <= 1
    assert len({config.node.data_dir for config in made}) == 3
    assert all(config.node.bind_address.is_loopback for config in made)


def test_an_s3_model_keeps_its_endpoint_and_a_path_its_odd_characters(tmp_path: Path) -> None:
    bucket = ModelSource("s3", "s3://models/llama", "http://127.0.0.1:9000", "us-east-1", "llama")
    config = configs(layout(tmp_path / "one", 1, bucket))[0]
    assert (config.model.endpoint_url, config.model.name) == ("http://127.0.0.1:9000", "llama")

    odd = 'a "quoted" \\ folder é🦋'
    config = configs(layout(tmp_path / odd, 1, ModelSource("filesystem", f"/models/{odd}")))[0]
    assert config.model.source_path == f"/models/{odd}"


def test_the_secret_is_for_its_owner_and_survives_a_second_start(tmp_path: Path) -> None:
    write(layout(tmp_path))
    secret = tmp_path / SECRET_FILE
    before = secret.read_text()
    write(layout(tmp_path))

    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert secret.read_text() == before
    assert len(before.strip()) == 64


def test_a_folder_of_another_cluster_size_is_refused(tmp_path: Path) -> None:
    write(layout(tmp_path, 3))

    with pytest.raises(UsageError, match="holds a cluster of 3 nodes, not 2"):
        write(layout(tmp_path, 2))


def test_busy_ports_are_stepped_over_and_no_port_is_given_twice(tmp_path: Path) -> None:
    busy = {7000, 7002, 8081}
    made = lay_out(
        tmp_path, TOY, 3, port_base=7000, http_port_base=7001, is_free=lambda p: p not in busy
    )

    assert [node.port for node in made.nodes] == [7001, 7003, 7004]
    assert [node.http_port for node in made.nodes] == [7005, 7006, 7007]


def test_variables_cannot_send_all_nodes_to_one_port(tmp_path: Path) -> None:
    made = layout(tmp_path)
    kept = {"PATH": "/bin", "BUTTERFLY_NODE_LOG_LEVEL": "debug", "BUTTERFLY_MODEL_DTYPE": "auto"}
    barred = {
        "BUTTERFLY_NODE_HTTP_ADDRESS": "127.0.0.1:1",
        "BUTTERFLY_NODE_ADVERTISE_ADDRESS": "127.0.0.1:1",
        "BUTTERFLY_CLUSTER_SEED_NODES": "a:1",
        "BUTTERFLY_SECURITY_API_KEYS_FILE": "/keys",
    }

    assert without_overrides({**kept, **barred}, made) == kept


@pytest.mark.parametrize("count", [0, -1, 65])
def test_an_impossible_number_of_nodes_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match="from 1 to 64"):
        layout(tmp_path, count)


def test_without_any_free_port_the_flag_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--port-base"):
        lay_out(tmp_path, TOY, 1, port_base=65000, http_port_base=1, is_free=lambda port: False)


@pytest.mark.parametrize("count", range(1, 65))
def test_shares_never_add_up_to_more_than_all(count: int) -> None:
    assert 0.9 < share_of_memory(count) * count <= 1
