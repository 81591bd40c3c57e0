"""What is refused, all at once, and what the message says to write instead."""

import contextlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from butterfly.config import NodeConfig, describe, load_config
from butterfly.config.schema import SECTIONS, keys_of
from butterfly_core.errors import ConfigError

GOOD: dict[str, dict[str, object]] = {
    "cluster": {"cluster_name": "demo", "seed_nodes": ["127.0.0.1:7000"]},
    "model": {"source_type": "embedded", "source_path": "toy-llama"},
}
WEB = {"model.source_type": "http", "model.source_path": "https://h/x"}
HUB = {"model.source_type": "huggingface", "model.source_path": "org/name"}
BUCKET = {"model.source_type": "s3", "model.source_path": "s3://models/x"}


def load(values: dict[str, object], *, environ: dict[str, str] | None = None) -> NodeConfig:
    """The good configuration with some ``section.key`` replaced."""
    flags: dict[str, Any] = {f"{s}.{k}": v for s, body in GOOD.items() for k, v in body.items()}
    return load_config(None, environ=environ or {}, flags=flags | values)


def refusal(values: dict[str, object], *, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        load(values, environ=environ)
    return str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"node.capacity": 0}, "a worker that carries no layers has nothing to do"),
        ({"node.capacity": 1.5}, "the share of free memory offered, from 0 to 1"),
        ({"node.capacity": True}, "a number"),
        ({"node.device": "gpu"}, '"auto", "cpu" or "cuda:N"'),
        ({"node.role": "boss"}, 'must be "worker" or "coordinator"'),
        ({"node.bind_address": "7000"}, "write host:port"),
        ({"node.bind_address": 7000}, "must be text: host:port"),
        ({"node.bind_address": "[::]:7000", "security.insecure": True}, "advertise_address = "),
        (
            {"node.advertise_address": "0.0.0.0:7000", "security.insecure": True},
            "an address that other nodes can dial",
        ),
        ({"node.advertise_address": "localhost:0"}, "an address that other nodes can dial"),
        ({"node.bind_address": "127.0.0.1:8080"}, "port 8080 is taken by bind_address"),
        ({"node.bind_address": "localhost:8080"}, "port 8080 is taken by bind_address"),
        ({"node.bind_address": "10.0.0.1:7000"}, "is open to other machines"),
        ({"node.http_address": "10.0.0.1:80"}, "or say insecure = true on a network you trust"),
        ({"cluster.quorum_size": 0}, "from 1 to 1000"),
        ({"cluster.quorum_size": 5000}, "from 1 to 1000"),
        ({"cluster.quorum_size": "three"}, "a whole number"),
        ({"cluster.quorum_size": 2.5}, "a whole number"),
        ({"cluster.max_voters": 4}, "must be odd"),
        ({"cluster.admission_lease_seconds": 1.0}, "more than 1"),
        ({"cluster.profile": "wan", "cluster.admission_lease_seconds": 4.0}, "more than 5"),
        ({"cluster.cluster_name": "a b"}, "letters, digits, dots, dashes and underscores"),
        ({"cluster.discovery_method": "magic"}, '"static", "dns", "consul" or "multicast"'),
        ({"cluster.seed_nodes": ["10.0.0.1"]}, "'10.0.0.1' is not an address"),
        ({"cluster.seed_nodes": ["10.0.0.1:0"]}, "cannot be dialled"),
        ({"cluster.seed_nodes": ["0.0.0.0:7000"]}, "cannot be dialled"),
        ({"cluster.seed_nodes": "a:1;b"}, "is not an address"),
        ({"cluster.seed_nodes": 7}, "must be a list of addresses"),
        ({"cluster.seed_nodes": []}, "a worker without seed nodes finds nobody"),
        (
            {"cluster.seed_nodes": ["10.0.0.1:7000"], "security.insecure": True},
            "10.0.0.1:7000 cannot reach 127.0.0.1:7000",
        ),
        ({"cluster.dead_after_seconds": float("inf")}, "seconds, from 0.5 to 600"),
        ({"cluster.plan_grace_seconds": -1}, "seconds, from 0 to 86400"),
        ({"model.source_path": "big-llama"}, "ships with the package: toy-llama; did you mean"),
        ({"model.source_path": ""}, "the name of an embedded model"),
        ({**BUCKET, "model.source_path": "/models"}, "must be s3://bucket/prefix"),
        ({**BUCKET, "model.source_path": "s3:///x"}, "must be s3://bucket/prefix"),
        ({"model.source_type": "filesystem", "model.source_path": "s3://b/x"}, 'type = "s3"'),
        ({"model.source_type": "filesystem", "model.source_path": "https://h/x"}, 'type = "http"'),
        ({"model.source_type": "filesystem", "model.source_path": "hf://o/n"}, "huggingface"),
        ({**WEB, "model.source_path": "/models/x"}, "must be a URL"),
        ({**WEB, "model.source_path": "https://u:p@h/x"}, "must be a plain URL"),
        ({**WEB, "model.source_path": "https://h/x?sig=1"}, "must be a plain URL"),
        ({**WEB, "model.endpoint_url": "http://h"}, "only with source_type"),
        ({**HUB, "model.source_path": "qwen"}, "must be org/name or org/name@revision"),
        ({**HUB, "model.region": "eu-central-1"}, "only with source_type"),
        ({**HUB, "model.endpoint_url": "https://u:p@h"}, "use HF_TOKEN"),
        ({"model.endpoint_url": "http://h:9000"}, "only with source_type"),
        ({"model.region": "eu-central-1"}, "only with source_type"),
        ({**BUCKET, "model.endpoint_url": "minio:9000"}, "http:// or https://"),
        ({**BUCKET, "model.endpoint_url": "http://h:x"}, "http:// or https://"),
        ({**BUCKET, "model.endpoint_url": "http://[::1"}, "http:// or https://"),
        ({"model.cache": "off", "model.cache_bytes_max": 5}, "bounds a cache that is off"),
        (
            {"model.peers": False, "model.peer_upload_bytes_per_second": 5},
            "bounds what peers are given",
        ),
        ({"model.require_signature": True}, "must be set because require_signature is"),
        ({"model.trusted_keys": ["/no/such/key"]}, "/no/such/key does not exist; make it, with:"),
        ({"model.trusted_keys": [7]}, "must be a list of files"),
        ({"model.trusted_keys": ["/"] * 40}, "is a folder, not a file"),
        ({"model.cache_scrub_bytes_per_second": -1}, "0 is never"),
        ({"engine.kv_cache_tokens": 16, "engine.block_size": 32}, "one block of 32 tokens"),
        ({"engine.step_tokens_max": 8}, "64 (sequences_max) or more"),
        ({"security.insecure": "maybe"}, "true or false"),
        ({"security.data_plane": "none"}, 'must be "aead", "mac" or "plain"'),
        ({"security.api_keys_file": "/no/such/file"}, "does not exist"),
        ({"security.cluster_secret_file": "/"}, "is a folder, not a file"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(
    values: dict[str, object], said: str
) -> None:
    text = refusal(values)

    assert said in text
    assert text.count("  - ") == 1


def test_everything_wrong_is_said_at_once() -> None:
    text = refusal(
        {"cluster.quorum_size": -1, "model.source_path": "x", "node.capacity": 2, "node.rule": 1},
        environ={"BUTTERFLY_ENGINE_THREADS": "many"},
    )

    assert text.startswith("5 configuration problems:")
    assert "environment variable BUTTERFLY_ENGINE_THREADS" in text
    assert "did you mean node.role" in text


def test_missing_values_are_named_with_the_variable_that_could_set_them() -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(None, environ={}, flags={})

    assert "[cluster] cluster_name: missing" in str(refused.value)
    assert "BUTTERFLY_MODEL_SOURCE_PATH" in str(refused.value)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    text = refusal({**BUCKET, "model.endpoint_url": "http://me:hunter2@minio:9000"})

    assert "must not carry a user name or password" in text
    assert "hunter2" not in text


def test_plain_data_beyond_loopback_must_be_said_to_be_insecure(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x" * 32)
    values: dict[str, object] = {
        "node.bind_address": "10.0.0.1:7000",
        "security.cluster_secret_file": str(secret),
    }

    assert load({**values, "security.data_plane": "mac"}).security.data_plane == "mac"
    assert "read and forged" in refusal({**values, "security.data_plane": "plain"})
    assert load({**values, "security.data_plane": "plain", "security.insecure": True})


OUTWARD: dict[str, dict[str, object]] = {
    "seed node gpu-1.example:7000 may be": {
        "cluster.seed_nodes": ["127.0.0.1:7000", "gpu-1.example:7000"]
    },
    "advertise_address gpu-1.example:7000 is": {"node.advertise_address": "gpu-1.example:7000"},
    'discovery_method = "dns" may': {
        "cluster.discovery_method": "dns",
        "cluster.seed_nodes": [],
        "cluster.quorum_size": 2,
        "discovery.dns_name": "nodes.example",
    },
    'discovery_method = "consul" may': {
        "cluster.discovery_method": "consul",
        "cluster.seed_nodes": [],
        "cluster.quorum_size": 2,
    },
    'discovery_method = "multicast" may': {
        "cluster.discovery_method": "multicast",
        "cluster.seed_nodes": [],
        "cluster.quorum_size": 2,
    },
}


@pytest.mark.parametrize("why", OUTWARD)
def test_a_node_that_may_dial_other_machines_needs_what_proves_them(
    tmp_path: Path, why: str
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x" * 32)
    outward = OUTWARD[why]

    text = refusal(outward)

    assert text.count("  - ") == 1
    assert f"cluster_secret_file: must be set: {why}" in text
    assert load({**outward, "security.insecure": True})
    assert load({**outward, "security.cluster_secret_file": str(secret)})


@pytest.mark.parametrize("host", ["a..b:8500", "consul:0", "consul:99999", "[::1", "x" * 64])
def test_a_consul_url_without_a_host_that_can_be_dialled_is_refused(host: str) -> None:
    consul = OUTWARD['discovery_method = "consul" may']
    values = {**consul, "security.insecure": True, "discovery.consul_url": f"http://{host}"}

    assert "must name a host" in refusal(values)


@pytest.mark.parametrize("host", ["consul", "consul:80", "[::1]", "[::1]:8500", "10.0.0.1/"])
def test_a_consul_url_may_leave_the_port_out(host: str) -> None:
    consul = OUTWARD['discovery_method = "consul" may']

    assert load({**consul, "security.insecure": True, "discovery.consul_url": f"http://{host}"})


def test_loopback_seeds_by_number_or_name_need_no_secret() -> None:
    seeds = ["127.0.0.2:7000", "localhost:7001", "[::1]:7002"]

    assert load({"cluster.seed_nodes": seeds}).security.cluster_secret_file is None


def test_multicast_with_certificates_is_refused_because_nothing_signs_it(tmp_path: Path) -> None:
    values = (
        certificate_files(tmp_path, *CERTIFICATE_KEYS)
        | OUTWARD['discovery_method = "multicast" may']
    )

    text = refusal(values)

    assert text.count("  - ") == 1
    assert "signed with cluster_secret_file, which ca_file replaces" in text
    assert load({**values, "security.insecure": True})


CERTIFICATE_KEYS = ("ca_file", "certificate_file", "private_key_file")


def certificate_files(folder: Path, *keys: str) -> dict[str, object]:
    for key in keys:
        (folder / key).write_text("PEM, which nobody reads here")
    return {f"security.{key}": str(folder / key) for key in keys}


@pytest.mark.parametrize("missing", CERTIFICATE_KEYS)
def test_certificate_files_come_together_or_not_at_all(tmp_path: Path, missing: str) -> None:
    keys = [key for key in CERTIFICATE_KEYS if key != missing]

    text = refusal(certificate_files(tmp_path, *keys))

    assert f"security] {missing}" in text
    assert "all three or none" in text


def test_certificates_replace_the_cluster_secret_also_beyond_loopback(tmp_path: Path) -> None:
    values = certificate_files(tmp_path, *CERTIFICATE_KEYS)
    values["node.bind_address"] = "10.0.0.1:7000"

    assert load(values).security.ca_file == tmp_path / "ca_file"


def test_a_cluster_secret_beside_certificates_is_refused(tmp_path: Path) -> None:
    values = certificate_files(tmp_path, *CERTIFICATE_KEYS)
    secret = tmp_path / "secret"
    secret.write_text("x" * 32)

    text = refusal({**values, "security.cluster_secret_file": str(secret)})

    assert "one thing decides who belongs here" in text


def test_a_missing_secret_file_is_named_with_how_to_make_one(tmp_path: Path) -> None:
    text = refusal({"security.cluster_secret_file": str(tmp_path / "none")})

    assert "butterfly-admin secret create" in text


def test_clients_must_not_hold_the_cluster_secret(tmp_path: Path) -> None:
    both = tmp_path / "secret"
    both.write_text("x" * 32)
    values: dict[str, object] = dict.fromkeys(
        ("security.cluster_secret_file", "security.api_keys_file"), str(both)
    )

    assert "clients must not hold it" in refusal(values)
    both.write_text("")
    assert "is empty" in refusal(values)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('role = "worker"', "role: stands outside of a section; did you mean [node] role?"),
        ("[nodes]", "[nodes]: unknown section; did you mean [node]?"),
        ("node = 5", "write [node] on a line of its own"),
        ("[cluster]\nrole = 1", "did you mean [node] role?"),
        ("[cluster]\nquorum = 1", "did you mean quorum_size?"),
        ("[cluster]\nzzz = 1", "[cluster] knows cluster_name, discovery_method"),
        ("[cluster", "not valid TOML"),
        ("x" * (1 << 20) + " = 1", "longer than 1048576 bytes"),
    ],
)
def test_a_file_is_refused_with_the_nearest_known_name(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text)

    with pytest.raises(ConfigError) as refused:
        load_config(path, environ={}, flags={})

    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_file_that_is_not_there_or_not_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    with pytest.raises(ConfigError, match="No such file"):
        load_config(path, environ={}, flags={})
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(path, environ={}, flags={})


@pytest.mark.parametrize(
    "variable",
    [
        "BUTTERFLY_NODE_SERVICE_HOST",
        "BUTTERFLY_NODE_PORT",
        "BUTTERFLY_PORT_7000_TCP_ADDR",
        "BUTTERFLY_SERVICE_PORT_HTTP",
        "BUTTERFLY_API_KEY",
        "HOME",
    ],
)
def test_variables_meant_for_others_are_left_alone(variable: str) -> None:
    assert load({}, environ={variable: "tcp://10.0.0.1:7000"}).node.role == "worker"


def test_a_variable_meant_for_us_is_refused_when_nobody_knows_it() -> None:
    environ = {"BUTTERFLY_NODE_ROLES": "x", "BUTTERFLY_NOD_ROLE": "x", "BUTTERFLY_MODEL_ZZZ": "x"}
    text = refusal({}, environ=environ)

    assert text.count("did you mean BUTTERFLY_NODE_ROLE?") == 2
    assert "the names are BUTTERFLY_SECTION_KEY" in text


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("BUTTERFLY_LOG_LEVEL", "BUTTERFLY_NODE_LOG_LEVEL"),
        ("BUTTERFLY_CLUSTER_NAME", "BUTTERFLY_CLUSTER_CLUSTER_NAME"),
    ],
)
def test_a_variable_without_its_section_is_refused_with_the_whole_name(
    written: str, meant: str
) -> None:
    assert f"did you mean {meant}?" in refusal({}, environ={written: "x"})


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("BUTTERFLY_SECURITY_INSECURE", "yes", True),
        ("BUTTERFLY_SECURITY_INSECURE", "0", False),
        ("BUTTERFLY_ENGINE_THREADS", " 3 ", 3),
        ("BUTTERFLY_CLUSTER_DEAD_AFTER_SECONDS", "5", 5.0),
        ("BUTTERFLY_NODE_LOG_LEVEL", "", "info"),
    ],
)
def test_a_variable_is_read_in_the_type_of_its_key(variable: str, text: str, value: object) -> None:
    section, _, key = variable.removeprefix("BUTTERFLY_").lower().partition("_")

    assert getattr(getattr(load({}, environ={variable: text}), section), key) == value


def test_seed_nodes_in_a_variable_stand_between_commas_and_count_once() -> None:
    flags = {"cluster_name": "x", "model.source_type": "embedded", "model_path": "toy-llama"}
    environ = {"BUTTERFLY_CLUSTER_SEED_NODES": "a:1, b:2,a:1"}
    config = load_config(None, environ=environ, flags={**flags, "security.insecure": True})

    assert [str(seed) for seed in config.cluster.seed_nodes] == ["a:1", "b:2"]


def test_a_relative_path_counts_from_the_file_it_stands_in(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        '[model]\nsource_type = "filesystem"\nsource_path = "m/x/"\n[node]\ndata_dir="d"'
    )
    config = load_config(path, environ={}, flags={"cluster_name": "x", "role": "coordinator"})

    assert config.node.data_dir == tmp_path / "d"
    assert config.model.source_path == str(tmp_path / "m" / "x")
    assert config.model.name == "x"


def test_a_flag_may_be_a_path_object() -> None:
    assert load({"node.data_dir": Path("/var/x")}).node.data_dir == Path("/var/x")


scalars = st.one_of(
    st.integers(-(1 << 40), 1 << 40), st.booleans(), st.text(max_size=20),
    st.floats(allow_nan=False, allow_infinity=False), st.lists(st.text(max_size=9), max_size=3),
)  # fmt: skip
names = st.sampled_from([(section, key) for section in SECTIONS for key in keys_of(section)])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(names, scalars, max_size=6))
def test_whatever_is_written_is_loaded_or_refused_as_configuration(
    values: dict[tuple[str, str], object],
) -> None:
    with contextlib.suppress(ConfigError):
        load({f"{section}.{key}": value for (section, key), value in values.items()})


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_any_text_survives_being_described(name: str) -> None:
    config = load({})
    named = config.model_copy(update={"model": config.model.model_copy(update={"name": name})})

    assert tomllib.loads(describe(named))["model"]["name"] == name
