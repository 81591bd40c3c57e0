"""status, clear-cache and diagnose against real sockets, folders and the stub node."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from butterfly.admin.main import main
from butterfly.admin.node_http import NodeHttp
from tests.integration.admin.conftest import StubNode, free_port, write_config
from tests.support.checkpoints import write_checkpoint

Start = Callable[[str], StubNode]


def cached(data_dir: Path, digit: str = "a") -> Path:
    """A cache that holds one (more) tensor of 1000 bytes."""
    tensor = data_dir / "cache" / "tensors" / f"{digit}b" / (f"{digit}b" * 32)
    tensor.parent.mkdir(parents=True)
    tensor.write_bytes(bytes(1000))
    return tensor


def test_status_shows_the_members_of_a_running_node(
    start_stub: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    node = start_stub("a")

    assert main(["status", "--url", node.url]) == 0
    assert "127.0.0.1" in capsys.readouterr().out
    assert main(["status", "--config", str(node.config), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cluster_name"] == "test"


def test_status_of_nobody_says_where_it_looked(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"

    assert main(["status", "--url", url]) == 1
    assert f"{url}/status does not answer" in capsys.readouterr().err


def test_a_cache_that_nobody_uses_is_cleared_here(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensor = cached(tmp_path / "data")

    assert main(["clear-cache", "--config", str(config), "--yes"]) == 0
    assert "freed 1000 B" in capsys.readouterr().out
    assert not tensor.exists()
    assert main(["clear-cache", "--data-dir", str(tmp_path / "data")]) == 0
    assert "holds nothing" in capsys.readouterr().out


def test_nothing_is_deleted_without_a_yes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tensor = cached(tmp_path)
    words = ["clear-cache", "--data-dir", str(tmp_path)]
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert main(words) == 2
    assert "--yes" in capsys.readouterr().err

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(words) == 1
    assert tensor.exists()

    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert main(words) == 0
    assert not tensor.exists()


def test_a_cache_in_use_is_left_to_its_node(
    start_stub: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    node = start_stub("a")
    tensor = cached(node.data_dir)

    assert main(["clear-cache", "--data-dir", str(node.data_dir), "--yes"]) == 1
    assert "a running node uses" in capsys.readouterr().err
    assert main(["clear-cache", "--config", str(node.config), "--yes"]) == 0
    assert f"the node at {node.url} freed 4.00 KiB (4096 bytes, 2" in capsys.readouterr().out
    assert tensor.exists(), "only the node itself deletes"


def test_a_node_is_found_by_the_beginning_of_its_id(
    start_stub: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    node = start_stub("a")
    words = ["clear-cache", "--url", node.url, "--yes", "--node"]

    assert main([*words, "0000"]) == 0
    assert f"{node.url} freed" in capsys.readouterr().out
    assert main([*words, "f"]) == 2
    assert "the members are 00000000" in capsys.readouterr().err


def test_a_node_is_found_by_its_address_or_host(
    start_stub: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    node = start_stub("a")

    for name in (node.url.removeprefix("http://"), "127.0.0.1"):
        assert main(["clear-cache", "--url", node.url, "--yes", "--node", name]) == 0
        assert f"{node.url} freed" in capsys.readouterr().out


def test_age_and_dry_run_are_handed_to_the_node(
    start_stub: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    node = start_stub("a")

    assert main(["clear-cache", "--url", node.url, "--older-than", "7d", "--dry-run"]) == 0
    assert f"{node.url} would free 2.00 KiB (2048 bytes, 1 tensors)" in capsys.readouterr().out


def test_only_what_was_not_used_for_long_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = cached(tmp_path, "a"), cached(tmp_path, "b")
    long_ago = time.time() - 8 * 86400
    os.utime(old, (long_ago, long_ago))
    words = ["clear-cache", "--data-dir", str(tmp_path), "--older-than", "7d"]

    assert main([*words, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "would be freed of 1000 B (1000 bytes, 1 tensors) of weights not used for 7 d" in told
    assert old.exists()
    assert main([*words, "--yes"]) == 0
    assert (old.exists(), new.exists()) == (False, True)
    assert main([*words, "--yes"]) == 0
    assert "holds no weights not used for 7 d" in capsys.readouterr().out
    assert main(["clear-cache", "--data-dir", str(tmp_path), "--older-than", "soon"]) == 2


def test_what_a_running_node_holds_is_counted_here_by_a_dry_run(
    start_stub: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    node = start_stub("a")
    tensor = cached(node.data_dir)

    assert main(["clear-cache", "--data-dir", str(node.data_dir), "--dry-run"]) == 0
    assert "1000 B" in capsys.readouterr().out
    assert tensor.exists()


def test_a_pinned_root_is_given_up_by_name_and_with_a_yes(
    start_stub: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = start_stub("a")
    words = ["manifest", "repin", "--url", node.url]
    assert main([*words, "--yes"]) == 1
    assert "has pinned nothing" in capsys.readouterr().err

    truth = NodeHttp.status
    monkeypatch.setattr(NodeHttp, "status", lambda n: {**truth(n), "pinned_root": "ab" * 32})
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    assert main(words) == 2
    assert main([*words, "--yes"]) == 0
    assert f"{'ab' * 32} is given up" in capsys.readouterr().out


def test_an_address_that_leads_to_another_node_is_not_cleared(
    start_stub: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, other = start_stub("a"), start_stub("b")
    truth = NodeHttp.status

    def status(node: NodeHttp) -> dict[str, Any]:
        told = {**truth(node)}
        if node.url == here.url:  # another machine's node, which listens on its loopback
            address = other.url.removeprefix("http://")
            told["members"] = [{"node_id": "f" * 32, "http_address": address}]
        return told

    monkeypatch.setattr(NodeHttp, "status", status)

    assert main(["clear-cache", "--url", here.url, "--node", "f", "--yes"]) == 1
    assert "is not the node ffffffff" in capsys.readouterr().err


def test_clear_cache_wants_to_know_whose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clear-cache"]) == 2
    assert "--data-dir" in capsys.readouterr().err


def diagnose(config: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    code = main(["diagnose", "--config", str(config), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert all(check["fix"] for check in report["checks"] if check["verdict"] != "PASS")
    assert (code == 1) == (report["verdict"] == "FAIL")
    return code, {c["name"]: f"{c['verdict']} {c['seen']}" for c in report["checks"]}


def test_diagnose_sees_free_ports_and_ports_of_the_running_node(
    config: Path, start_stub: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found = diagnose(config, capsys)
    assert found["peer port"].startswith("PASS")
    assert found["HTTP port"].endswith("is free")

    _, found = diagnose(start_stub("a").config, capsys)
    assert "held by the running node 00000000" in found["HTTP port"]
    assert found["version of 00000000"] == "PASS 0.1.0"
    assert any(name.startswith("clock against 127.0.0.1") for name in found)


def test_diagnose_names_a_port_that_another_program_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = write_config(tmp_path, port=port, http_port=free_port())
        code, found = diagnose(config, capsys)

    assert code == 1
    assert found["peer port"] == f"FAIL 127.0.0.1:{port} is held by another program"


def test_diagnose_names_a_seed_on_which_nothing_listens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = f"127.0.0.1:{free_port()}"
    config = write_config(tmp_path, port=free_port(), http_port=free_port())
    text = config.read_text().replace("[model]", f'seed_nodes = ["{seed}"]\n[model]')
    config.write_text(text)
    code, found = diagnose(config, capsys)

    assert code == 1
    assert found[f"seed {seed}"].startswith("FAIL the machine answers, but nothing listens")


def test_diagnose_of_a_broken_configuration_says_what_is_wrong_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "node.toml"
    config.write_text("[cluster]\ncluster_nam = 1\n")
    code, found = diagnose(config, capsys)

    assert code == 1
    assert "cluster_nam" in found["config"]
    assert found["ports"] == "WARN not checked"
    assert found["memory"].startswith("PASS")


def test_diagnose_for_people_has_a_line_per_check_and_a_sum(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["diagnose", "--url", f"http://127.0.0.1:{free_port()}"]) == 0
    shown = capsys.readouterr().out

    assert "WARN  config" in shown
    assert "→ add --config FILE" in shown
    assert "0 FAIL" in shown


def model_config(tmp_path: Path, folder: Path) -> Path:
    config = write_config(tmp_path, port=free_port(), http_port=free_port())
    text = config.read_text().replace('"embedded"', '"filesystem"')
    config.write_text(text.replace('"toy-llama"', f'"{folder}"'))
    return config


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (None, "does not exist"),
        ({}, "has no config.json"),
    ],
)
def test_diagnose_names_what_a_model_folder_lacks(
    files: dict[str, str] | None,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
    code, found = diagnose(model_config(tmp_path, folder), capsys)

    assert code == 1
    assert expected in found["model folder"]


def test_diagnose_of_a_sound_model_tells_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny"
    write_checkpoint(folder)
    _, found = diagnose(model_config(tmp_path, folder), capsys)

    assert found["model"].startswith("PASS tiny: LlamaForCausalLM, 4 layers")
    assert "the cache may grow to" in found["disk"]
    assert "an even share of the model is" in found["memory"]


def test_diagnose_tells_a_model_whose_headers_are_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    code, found = diagnose(model_config(tmp_path, folder), capsys)

    assert code == 1
    assert found["model folder"].startswith("PASS")
    assert found["model"].startswith("FAIL")


def test_a_lock_that_nobody_holds_is_no_use(tmp_path: Path) -> None:
    from butterfly.admin.data_folder import is_in_use

    assert not is_in_use(tmp_path)
    (tmp_path / "raft").mkdir()
    lock = tmp_path / "raft" / "journal.lock"
    lock.touch()
    assert not is_in_use(tmp_path)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert is_in_use(tmp_path)
