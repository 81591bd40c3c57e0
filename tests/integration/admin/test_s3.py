"""diagnose and ``up --s3`` against a real S3-compatible server (rclone)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from butterfly.admin.checks.finding import Finding, Verdict
from butterfly.admin.checks.s3_access import look_at_s3
from butterfly.admin.children import Children
from butterfly.admin.local_s3 import LocalBucket, serve_folder
from butterfly.config import ModelSection
from tests.integration.admin.conftest import free_port

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalBucket]:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    (folder / "model.safetensors").write_bytes(bytes(100))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with Children(grace_seconds=5) as children:
        served = serve_folder(children, folder, "toy", tmp_path, free_port())
        for name, value in served.environ.items():
            monkeypatch.setenv(name, value)
        yield served


def look(bucket: LocalBucket, **changed: str) -> dict[str, Finding]:
    values = {
        "source_type": "s3",
        "source_path": bucket.model.source_path,
        "endpoint_url": bucket.model.endpoint_url,
        "region": bucket.model.region,
    }
    model = ModelSection.model_validate({**values, **changed})
    return {finding.name: finding for finding in look_at_s3(model)}


def test_a_bucket_that_can_be_read_passes_every_step(bucket: LocalBucket) -> None:
    found = look(bucket)

    assert [finding.verdict for finding in found.values()] == [Verdict.PASS] * 4
    assert found["S3 range"].seen == "bytes 0-15/42 delivered"
    assert found["S3 head"].seen == "toy/config.json has 42 bytes"
    assert found["S3 list"].seen == "2 objects, 1 of them safetensors"


def test_missing_credentials_are_named(
    bucket: LocalBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)
    found = look(bucket)

    assert found["S3 credentials"].verdict is Verdict.FAIL
    assert "AWS_ACCESS_KEY_ID" in found["S3 credentials"].fix


@pytest.mark.parametrize("wrong", KEYS)
def test_a_wrong_key_is_told_from_a_wrong_secret(
    bucket: LocalBucket, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(wrong, "wrong-wrong-wrong")
    refused = look(bucket)["S3 range"]

    assert refused.verdict is Verdict.FAIL
    assert wrong in refused.fix


def test_a_wrong_folder_and_a_wrong_bucket_are_told(bucket: LocalBucket) -> None:
    folder = look(bucket, source_path="s3://models/typo")["S3 range"]
    other = look(bucket, source_path="s3://typo/toy")["S3 range"]

    assert "s3://models/typo/config.json does not exist" in folder.seen
    assert other.verdict is Verdict.FAIL
    assert "source_path" in other.fix


def test_a_server_that_is_not_there_is_told(bucket: LocalBucket) -> None:
    refused = look(bucket, endpoint_url=f"http://127.0.0.1:{free_port()}")["S3 range"]

    assert refused.verdict is Verdict.FAIL
    assert "endpoint_url" in refused.fix
