"""Nodes with certificates of the operator's own authority, over real sockets."""

import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from butterfly_core.address import Address
from butterfly_core.errors import NotAuthenticated
from butterfly_core.ids import NodeId
from butterfly_wire.credentials import Credentials, OperatorCredentials, SecretCredentials, Shown
from butterfly_wire.datalink import DataLink
from butterfly_wire.identity import TlsIdentity
from butterfly_wire.listener import PeerListener
from butterfly_wire.pool import PeerPool
from butterfly_wire.tickets import dial_data
from tests.support.certificates import NOW, OperatorAuthority, key_pem, write_files
from tests.support.wire_world import ANNA, BERT, HERE, SECRET, World, until

CARL = NodeId("c" * 32)
LAB = OperatorAuthority()


async def whoami(caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"caller": caller}


class Careless:
    """A node that shows whatever it has, as a hostile one would."""

    peers_are_named = False
    named = None
    mints = ""
    accepts = ()

    def __init__(self, trusted: bytes, pem: bytes) -> None:
        self.trusted_pem = trusted.decode()
        self._pem = pem

    def show(self, node_id: NodeId, now: object) -> Shown:
        return Shown(self._pem, NOW - timedelta(days=1), NOW + timedelta(days=1))


def own(folder: Path, *uris: str) -> Credentials:
    found = write_files(folder, LAB.pem, LAB.sign(uris=uris)).load()
    assert isinstance(found, OperatorCredentials)
    return found


async def listening(tcp: World, credentials: Credentials) -> tuple[PeerListener, Address]:
    identity = TlsIdentity(credentials, ANNA)
    listener = PeerListener(HERE, identity, cluster_name="test", node_id=ANNA)
    listener.on_call("whoami", whoami)
    tcp.closing.append(listener)
    return listener, await listener.start()


def pool_of(tcp: World, credentials: Credentials, node_id: NodeId = BERT) -> PeerPool:
    identity = TlsIdentity(credentials, BERT)
    pool = PeerPool(identity, cluster_name="test", node_id=node_id)
    tcp.closing.append(pool)
    return pool


async def test_without_a_name_in_the_certificate_the_hello_says_who_it_is(
    tcp: World, tmp_path: Path
) -> None:
    _, address = await listening(tcp, own(tmp_path / "a"))
    pool = pool_of(tcp, own(tmp_path / "b"))

    answer = await pool.call(address, "whoami", {}, timeout_seconds=10, expect=ANNA)

    assert answer == {"caller": BERT}


async def test_another_hello_than_expected_is_not_authenticated(tcp: World, tmp_path: Path) -> None:
    _, address = await listening(tcp, own(tmp_path / "a"))

    with pytest.raises(NotAuthenticated, match=f"expected {CARL}"):
        await pool_of(tcp, own(tmp_path / "b")).call(
            address, "whoami", {}, timeout_seconds=10, expect=CARL
        )


async def test_a_certificate_that_names_its_node_is_good_for_no_other(
    tcp: World, tmp_path: Path
) -> None:
    _, address = await listening(tcp, own(tmp_path / "a", f"butterfly:node:{ANNA}"))
    named = own(tmp_path / "b", f"butterfly:node:{BERT}")

    answer = await pool_of(tcp, named).call(address, "whoami", {}, timeout_seconds=10)
    assert answer == {"caller": BERT}
    with pytest.raises(NotAuthenticated, match=f"its certificate says {BERT}"):
        await pool_of(tcp, named, CARL).call(address, "whoami", {}, timeout_seconds=10)


async def test_a_holder_of_a_secret_is_no_member_here_nor_the_other_way_round(
    tcp: World, tmp_path: Path
) -> None:
    _, address = await listening(tcp, own(tmp_path / "a"))
    with pytest.raises(NotAuthenticated, match="certificates of the same authority"):
        await pool_of(tcp, SecretCredentials(SECRET)).call(
            address, "whoami", {}, timeout_seconds=10
        )

    _, address = await listening(tcp, SecretCredentials(SECRET))
    with pytest.raises(NotAuthenticated, match="certificates of the same authority"):
        await pool_of(tcp, own(tmp_path / "b")).call(address, "whoami", {}, timeout_seconds=10)


def signed(**wrong: Any) -> bytes:
    authority = wrong.pop("by", LAB)
    certificate, key = authority.sign(name="mallory", **wrong)
    return key_pem(key) + bytes(certificate)


BAD: dict[str, dict[str, Any]] = {
    "expired": {"until": NOW - timedelta(hours=1), "since": NOW - timedelta(days=9)},
    "not yet valid": {"since": NOW + timedelta(days=2)},
    "purpose": {"usages": [ExtendedKeyUsageOID.CODE_SIGNING]},
    "local issuer": {"by": OperatorAuthority("stranger")},
}


@pytest.mark.parametrize("reason", BAD)
async def test_a_dialer_with_a_bad_certificate_is_refused_and_logged_with_the_reason(
    tcp: World,
    tmp_path: Path,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    listener, address = await listening(tcp, own(tmp_path / "a"))
    monkeypatch.setattr("butterfly_wire.identity._rehearse", lambda *_: None)

    with pytest.raises(NotAuthenticated, match="it refused this node's certificate"):
        await pool_of(tcp, Careless(LAB.pem, signed(**BAD[reason]))).call(
            address, "whoami", {}, timeout_seconds=10
        )

    await until(lambda: listener.statistics()["handshakes_failed"] == 1)
    assert reason in caplog.text
    assert "refused a connection from 127.0.0.1:" in caplog.text


@pytest.mark.parametrize("reason", BAD)
async def test_a_listener_with_a_bad_certificate_is_refused_by_name_with_its_dates(
    tcp: World, tmp_path: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialer = pool_of(tcp, own(tmp_path / "b"))
    monkeypatch.setattr("butterfly_wire.identity._rehearse", lambda *_: None)
    _, address = await listening(tcp, Careless(LAB.pem, signed(**BAD[reason])))

    with pytest.raises(NotAuthenticated, match=f"{address}: .*{reason}") as refused:
        await dialer.call(address, "whoami", {}, timeout_seconds=10)

    assert "commonName=mallory" in str(refused.value)
    assert "valid from" in str(refused.value)


async def test_data_tickets_work_as_with_a_secret(tcp: World, tmp_path: Path) -> None:
    listener, address = await listening(tcp, own(tmp_path / "a"))
    accepted: list[socket.socket] = []
    ticket = listener.issue_ticket(accepted.append)

    near = DataLink(await dial_data(address, ticket, timeout_seconds=10), *ticket.dialer_keys)
    await until(lambda: bool(accepted))
    far = DataLink(accepted[0], *ticket.acceptor_keys)
    near.send(b"meta", b"payload")

    meta, payload = far.receive()
    assert (bytes(meta), bytes(payload)) == (b"meta", b"payload")
    near.close()
    far.close()
