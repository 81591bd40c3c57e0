"""What a cluster believes of weights: pinned ones, signed ones, and none that are neither."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from butterfly.admin.main import main
from butterfly_weights.manifest import MANIFEST_NAME
from butterfly_weights.signature import SIGNATURE_NAME, load_trusted_keys
from tests.e2e.test_rejection import flip_a_bit_of_the_embedding
from tests.support.certificates import key_pem
from tests.support.local_cluster import LocalCluster, local_cluster
from tests.support.tiny_models import make_tiny_model

pytestmark = pytest.mark.e2e


def model_of(folder: Path, **more: object) -> dict[str, Any]:
    return {"source_type": "filesystem", "source_path": str(folder), "name": "tiny", **more}


def errors(cluster: LocalCluster) -> str:
    return cluster.nodes[0].errors()


def test_changed_weights_are_refused_until_a_person_gives_the_pinned_root_up(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    make_tiny_model(folder, tied=True, tokenizer=True)
    with local_cluster(tmp_path / "cluster", model_of(folder), nodes=2) as cluster:
        cluster.wait_until_operational()
        before = cluster.nodes[0].status()
        assert before["trust"] == "pinned, not verified against a publisher"
        assert before["pinned_root"] == before["merkle_root"]

        flip_a_bit_of_the_embedding(folder)
        for node in cluster.nodes:
            node.kill()  # so that they look at the source anew
            node.start()
        cluster.wait(lambda: "manifest repin" in errors(cluster), "a refusal of the new weights")
        assert cluster.nodes[0].status()["pinned_root"] == before["pinned_root"]

        assert main(["manifest", "repin", "--yes", "--url", cluster.nodes[1].url]) == 0
        cluster.wait(
            lambda: (
                cluster.nodes[0].status().get("pinned_root") not in (None, before["pinned_root"])
            ),
            "another pinned root",
        )
        cluster.wait_until_operational()
        after = cluster.nodes[0].status()
        assert (after["errors"], after["progress_percent"]) == ([], 100.0)
        assert after["merkle_root"] == after["pinned_root"]


def test_a_required_signature_is_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make_tiny_model(folder, tied=True, tokenizer=True)
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "publisher.pem").write_bytes(key_pem(key))
    public = tmp_path / "publisher.pub"
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    model = model_of(folder, require_signature=True, trusted_keys=[str(public)])
    (key_id,) = load_trusted_keys([public])
    with local_cluster(tmp_path / "cluster", model, nodes=1) as cluster:
        cluster.wait(lambda: "require_signature is set" in errors(cluster), "a refusal")
        assert cluster.nodes[0].status()["model"] is None

        assert main(["manifest", "create", str(folder)]) == 0
        assert (
            main(["manifest", "sign", str(folder), "--key", str(tmp_path / "publisher.pem")]) == 0
        )
        cluster.wait_until_operational()
        told = cluster.nodes[0].status()
        assert told["trust"] == f"verified against the manifest, signed by {key_id}"
        assert told["load"]["bytes_done"] == told["load"]["bytes_total"] > 0

        (folder / SIGNATURE_NAME).write_bytes(b"{}")
        cluster.nodes[0].kill()
        cluster.nodes[0].start()
        cluster.wait(lambda: "is no signature" in errors(cluster), "a refusal of the damaged one")
        assert (folder / MANIFEST_NAME).exists()
        cluster.wait(lambda: cluster.nodes[0].status()["members"][0]["device"], "the engine")
        assert cluster.nodes[0].status()["layers"] in (None, "0-3")
