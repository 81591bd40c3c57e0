from pathlib import Path

from butterfly.config import describe, load_config

FLAGS = {
    "cluster.cluster_name": "demo",
    "model.source_type": "s3",
    "model.source_path": "s3://models/toy",
    "role": "coordinator",
}


def test_each_value_says_where_it_came_from(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[engine]\nthreads = 2\n")
    environ = {"BUTTERFLY_NODE_CAPACITY": "0.5"}
    lines = describe(load_config(file, environ=environ, flags=FLAGS)).splitlines()
    noted = {
        line.split("  #")[0].strip(): line.rpartition("# ")[2] for line in lines if "#" in line
    }

    assert noted["threads = 2"] == str(file)
    assert noted["capacity = 0.5"] == "environment BUTTERFLY_NODE_CAPACITY"
    assert noted['role = "coordinator"'] == "flag --role"
    assert noted['source_path = "s3://models/toy"'] == "setting model.source_path"
    assert noted['name = "toy"'] == "from source_path"
    assert noted['advertise_address = "127.0.0.1:7000"'] == "from bind_address"
    assert noted["block_size = 16"] == "default"
    assert noted["# region is not set"] == "default"


def test_what_is_in_secret_files_is_never_shown(tmp_path: Path) -> None:
    secret = tmp_path / "cluster.secret"
    secret.write_text("correct horse battery staple")
    flags = {**FLAGS, "security.cluster_secret_file": str(secret)}
    described = describe(load_config(None, environ={}, flags=flags))

    assert str(secret) in described
    assert "its content is not shown" in described
    assert "horse" not in described
