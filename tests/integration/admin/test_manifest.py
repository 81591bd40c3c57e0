"""``manifest create`` and ``verify`` of a real folder and a real bucket."""

import json
from pathlib import Path

import pytest

from butterfly.admin.main import main
from tests.support.checkpoints import write_checkpoint
from tests.support.s3 import credentials_environment, rclone_s3

MANIFEST = "butterfly.manifest.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "tiny")
    return tmp_path / "tiny"


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def shards(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def test_a_manifest_is_made_and_then_matches(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["manifest", "create", str(model)]) == 0
    root = json.loads((model / MANIFEST).read_text())["root"]
    assert f"root {root}" in capsys.readouterr().out

    assert main(["manifest", "verify", str(model)]) == 0
    assert "matches its manifest: 4 layers" in capsys.readouterr().out
    assert [path.name for path in model.glob("*.part")] == []


def test_every_tensor_that_differs_is_named(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["manifest", "create", str(model)])
    for shard in shards(model)[:2]:
        flip_last_byte(shard)
    capsys.readouterr()

    assert main(["manifest", "verify", str(model), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert len({problem["tensor"] for problem in problems}) == 2
    assert main(["manifest", "verify", str(model)]) == 1
    shown = capsys.readouterr().out
    assert all(
        f"tensor {problem['tensor']} in {problem['object_name']}" in shown for problem in problems
    )
    assert "does NOT match: 2 differences in 2 tensors" in shown


def test_a_manifest_elsewhere_leaves_the_model_untouched(model: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "proof.json"

    assert main(["manifest", "create", str(model), "--output", str(elsewhere)]) == 0
    assert not (model / MANIFEST).exists()
    assert main(["manifest", "verify", str(model), "--manifest", str(elsewhere)]) == 0
    (model / "generation_config.json").write_text("{}")
    assert main(["manifest", "verify", str(model), "--manifest", str(elsewhere)]) == 1


def test_what_cannot_be_compared_is_told(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["manifest", "verify", str(model)]) == 1
    assert "manifest create" in capsys.readouterr().err
    assert main(["manifest", "verify", str(model), "--manifest", str(tmp_path / "no")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    assert main(["manifest", "create", str(model), "--output", str(tmp_path / "no" / "m")]) == 1
    assert "cannot be written" in capsys.readouterr().err
    assert main(["manifest", "create", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err


def test_a_bucket_gets_its_manifest_too(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rclone_s3(tmp_path / "buckets") as server:
        for name, value in credentials_environment().items():
            monkeypatch.setenv(name, value)
        server.upload(model, "models/tiny")
        words = ["s3://models/tiny", "--endpoint-url", server.url, "--region", "us-east-1"]

        assert main(["manifest", "create", *words]) == 0
        assert main(["manifest", "verify", *words]) == 0
        assert server.root is not None
        flip_last_byte(server.root / "models" / "tiny" / shards(model)[0].name)
        assert main(["manifest", "verify", *words]) == 1
