"""A secret that cannot be used shows among the node's problems, until it can."""

import asyncio
from pathlib import Path

from butterfly.config import load_config
from butterfly.node.local import Local
from butterfly.node.secrecy import SECRET_PROBLEM, watch_credentials
from butterfly.node.settings import registration_of
from butterfly.security import security_view, tls_identity
from butterfly_cluster.node_duties import Facts
from butterfly_core.ids import NodeId

ANNA = NodeId("a" * 32)


async def test_a_bad_secret_file_is_a_problem_until_it_is_mended(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("o" * 32)
    path.chmod(0o600)
    flags = {
        "cluster.cluster_name": "c",
        "model.source_type": "embedded",
        "model.source_path": "toy-llama",
        "node.role": "coordinator",
        "security.cluster_secret_file": str(path),
    }
    config = load_config(None, environ={}, flags=flags)
    local = Local(Facts(registration_of(config, ANNA)))
    tls, watch = tls_identity(config, ANNA)
    assert watch is not None
    before = security_view(config, tls)
    watching = asyncio.create_task(watch_credentials(watch, local, every_seconds=0.0))

    path.write_text("short")
    while SECRET_PROBLEM not in local.problems:
        await asyncio.wait([watching], timeout=0)
    assert str(path) in local.problems[SECRET_PROBLEM].message
    assert security_view(config, tls) == before

    path.write_text("n" * 32)
    while SECRET_PROBLEM in local.problems:
        await asyncio.wait([watching], timeout=0)
    assert security_view(config, tls)["mints"] != before["mints"]
    watching.cancel()
    await asyncio.wait([watching])


async def test_a_node_without_files_watches_nothing(tmp_path: Path) -> None:
    flags = {
        "cluster.cluster_name": "c",
        "model.source_type": "embedded",
        "model.source_path": "toy-llama",
        "node.role": "coordinator",
    }
    config = load_config(None, environ={}, flags=flags)
    tls, watch = tls_identity(config, ANNA)

    await watch_credentials(watch, Local(Facts(registration_of(config, ANNA))))

    assert watch is None
    assert security_view(config, tls)["authenticated"] is False
