"""A node's reading of its model: without the signature it requires it knows no model at all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from butterfly.admin.main import main
from butterfly.config import ModelSection
from butterfly.node.local import Local
from butterfly.node.model import PROBLEM_CODE, ModelReader
from butterfly_cluster.node_duties import Facts
from butterfly_cluster.state import ClusterState
from butterfly_weights.signature import SIGNATURE_NAME
from tests.support.certificates import key_pem
from tests.support.clusters import registered
from tests.support.tiny_models import make_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that can be run, with its manifest; and a key pair beside it."""
    make_tiny_model(tmp_path / "tiny", tokenizer=True)
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "publisher.pem").write_bytes(key_pem(key))
    (tmp_path / "publisher.pub").write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    assert main(["manifest", "create", str(tmp_path / "tiny")]) == 0
    return tmp_path / "tiny"


def sign(model: Path) -> None:
    key = model.with_name("publisher.pem")
    assert main(["manifest", "sign", str(model), "--key", str(key)]) == 0


def reader(model: Path, **more: Any) -> tuple[ModelReader, Local]:
    local = Local(Facts(registered(1)))
    trusted = (model.with_name("publisher.pub"),)
    values = {"source_type": "filesystem", "source_path": str(model), "trusted_keys": trusted}
    section = ModelSection(**{**values, **more})
    return ModelReader(section, local, embedded_root=model, cache=None), local


async def test_a_model_is_known_only_once_its_required_signature_is_there(model: Path) -> None:
    reading, local = reader(model, require_signature=True)

    assert not await reading.refresh()
    assert reading.found is None
    assert "require_signature is set" in local.problems[PROBLEM_CODE].message
    sign(model)
    assert await reading.refresh()
    assert local.problems == {}
    assert local.signed is not None
    assert reading.found is not None
    assert local.signed.root == reading.found.described.spec.manifest_root


async def test_a_wrong_signature_is_a_problem_also_where_none_is_required(model: Path) -> None:
    sign(model)
    reading, local = reader(model)
    assert await reading.refresh()
    signature = model / SIGNATURE_NAME
    signature.write_text(signature.read_text().replace("A", "B", 1))

    assert not await reading.refresh()
    assert local.problems[PROBLEM_CODE].file == SIGNATURE_NAME
    signature.unlink()
    assert await reading.refresh()
    assert local.signed is None


async def test_a_trusted_key_that_cannot_be_read_is_a_problem(model: Path) -> None:
    reading, local = reader(model, trusted_keys=(model / "config.json",))

    assert not await reading.refresh()
    assert "holds no PUBLIC KEY" in local.problems[PROBLEM_CODE].message


async def test_a_model_is_read_again_when_its_pinned_root_was_given_up(model: Path) -> None:
    reading, _ = reader(model)
    state = ClusterState(repinned_epoch=3)
    await reading.read_until_known(lambda: state)
    first = reading.found
    await reading.read_until_known(lambda: state)
    assert reading.found is first
    await reading.read_until_known(lambda: replace(state, repinned_epoch=2))
    assert reading.found is first

    await reading.read_until_known(lambda: replace(state, repinned_epoch=4))

    assert reading.found is not None
    assert reading.found is not first
