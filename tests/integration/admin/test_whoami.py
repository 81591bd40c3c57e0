"""diagnose calls seeds over the real authenticated wire."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from butterfly.admin.checks.finding import Finding, Verdict
from butterfly.admin.checks.network import look_at_ports, look_at_seeds
from butterfly.admin.checks.situation import Situation
from butterfly.admin.node_http import node_at
from butterfly.config import NodeConfig, load_config
from butterfly_core.address import Address
from butterfly_core.ids import NodeId
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.listener import PeerListener
from butterfly_wire.secret import load_secret
from tests.integration.admin.conftest import free_port

PEER = NodeId("ab" * 16)


def secret_file(folder: Path, text: str) -> Path:
    path = folder / f"{text[:4]}.secret"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Address]:
    """A listener of the cluster ``c`` that answers whoami."""

    async def whoami(caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"node_id": PEER}

    identity = TlsIdentity(load_secret(secret_file(tmp_path, "right-" * 8)), PEER)
    listener = PeerListener(Address("127.0.0.1", 0), identity, cluster_name="c", node_id=PEER)
    listener.on_call("whoami", whoami)
    address = await listener.start()
    yield address
    await listener.close()


def situation(peer: Address, secret: Path, *, name: str = "c", bind: str = "") -> Situation:
    flags = {
        "cluster.cluster_name": name,
        "cluster.seed_nodes": [str(peer)],
        "model.source_type": "embedded",
        "model.source_path": "toy-llama",
        "node.bind_address": bind or f"127.0.0.1:{free_port()}",
        "node.advertise_address": "localhost:7000",
        "node.http_address": f"127.0.0.1:{free_port()}",
        "security.cluster_secret_file": str(secret),
    }
    config = load_config(None, environ={}, flags=flags)
    return Situation(config, node_at(f"http://127.0.0.1:{free_port()}"))


async def look(at: Situation) -> Finding:
    (finding,) = await asyncio.to_thread(look_at_seeds, at)
    return finding


async def test_a_seed_of_this_cluster_says_who_it_is(peer: Address, tmp_path: Path) -> None:
    finding = await look(situation(peer, secret_file(tmp_path, "right-" * 8)))

    assert finding.verdict is Verdict.PASS
    assert "authenticated as abababab" in finding.seen


async def test_a_seed_with_another_secret_fails(peer: Address, tmp_path: Path) -> None:
    finding = await look(situation(peer, secret_file(tmp_path, "wrong-" * 8)))

    assert finding.verdict is Verdict.FAIL
    assert "secret" in finding.seen + finding.fix


async def test_a_seed_of_another_cluster_fails(peer: Address, tmp_path: Path) -> None:
    finding = await look(situation(peer, secret_file(tmp_path, "right-" * 8), name="other"))

    assert finding.verdict is Verdict.FAIL
    assert "'c'" in finding.seen


async def test_a_secret_that_others_can_read_fails(peer: Address, tmp_path: Path) -> None:
    secret = secret_file(tmp_path, "right-" * 8)
    secret.chmod(0o644)
    finding = await look(situation(peer, secret))

    assert finding.verdict is Verdict.FAIL
    assert "chmod 600" in finding.seen


async def test_a_peer_port_held_by_a_node_of_this_cluster_is_fine(
    peer: Address, tmp_path: Path
) -> None:
    at = situation(peer, secret_file(tmp_path, "right-" * 8), bind=str(peer))
    port, _ = await asyncio.to_thread(look_at_ports, at)

    assert port.verdict is Verdict.PASS
    assert port.seen == f"{peer} is held by the running node abababab"


async def test_a_peer_port_held_on_all_ipv6_addresses_is_asked_at_the_loopback_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Address] = []

    def ask_who(config: NodeConfig, address: Address) -> str:
        asked.append(address)
        return PEER

    monkeypatch.setattr("butterfly.admin.checks.whoami.ask_who", ask_who)
    with socket.create_server(("::", 0), family=socket.AF_INET6) as held:
        bound, seed = Address("::", held.getsockname()[1]), Address("127.0.0.1", 7000)
        at = situation(seed, secret_file(tmp_path, "right-" * 8), bind=str(bound))
        port, _ = await asyncio.to_thread(look_at_ports, at)

    assert port.verdict is Verdict.PASS
    assert asked == [Address("::1", bound.port)]
