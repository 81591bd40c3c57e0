"""Certificates out of a secret: handshakes in memory, no socket."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest

from butterfly_core.errors import NotAuthenticated
from butterfly_core.ids import NodeId
from butterfly_wire.authority import LEAF_LIFE
from butterfly_wire.credentials import SecretCredentials, Shown
from butterfly_wire.identity import TlsIdentity, node_id_of
from butterfly_wire.secret import ClusterSecret

ANNA, BERT = NodeId("a" * 32), NodeId("b" * 32)
OLD, NEW = b"o" * 32, b"n" * 32
NOW = datetime.now(UTC)


def identity(node_id: NodeId, *secrets: bytes, at: datetime = NOW) -> TlsIdentity:
    return TlsIdentity(ClusterSecret(*secrets), node_id, clock=lambda: at)


def handshake(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Let both sides talk until they agree. Raises the SSLError of who objects first."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server, server_hostname="butterfly")
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    client.do_handshake()  # nothing left to do, or they did not agree
    server.do_handshake()
    return server, client


def meet(server: TlsIdentity, client: TlsIdentity) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    return handshake(server.server_context(), client.client_context())


def test_both_sides_prove_who_they_are_over_tls_1_3() -> None:
    server, client = meet(identity(ANNA, NEW), identity(BERT, NEW))

    assert node_id_of(client.getpeercert()) == ANNA
    assert node_id_of(server.getpeercert()) == BERT
    assert server.version() == client.version() == "TLSv1.3"
    assert not client.session_reused


def test_another_secret_fails_in_the_handshake() -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        meet(identity(ANNA, NEW), identity(BERT, OLD))


@pytest.mark.parametrize(
    ("one", "other"),
    [((OLD,), (OLD, NEW)), ((OLD, NEW), (NEW, OLD)), ((NEW, OLD), (NEW,))],
)
def test_while_the_secret_changes_neighbouring_steps_meet(
    one: tuple[bytes, ...], other: tuple[bytes, ...]
) -> None:
    meet(identity(ANNA, *one), identity(BERT, *other))
    meet(identity(ANNA, *other), identity(BERT, *one))


def test_a_node_that_does_not_know_the_new_secret_refuses_it() -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        meet(identity(ANNA, OLD), identity(BERT, NEW, OLD))


def test_a_client_without_a_certificate_is_refused() -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.verify_mode = ssl.CERT_NONE

    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(identity(ANNA, NEW).server_context(), bare)


def test_an_older_tls_is_refused() -> None:
    old = identity(BERT, NEW).client_context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2

    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        handshake(identity(ANNA, NEW).server_context(), old)


def test_an_expired_certificate_is_refused() -> None:
    long_ago = identity(BERT, NEW, at=NOW - LEAF_LIFE - timedelta(minutes=1))

    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        meet(identity(ANNA, NEW), long_ago)


@pytest.mark.parametrize("hours", [-23, 23])
def test_clocks_may_differ_by_almost_a_day(hours: int) -> None:
    meet(identity(ANNA, NEW), identity(BERT, NEW, at=NOW + timedelta(hours=hours)))


def test_contexts_are_kept_until_half_of_the_certificate_s_life_is_over() -> None:
    clock = [NOW]
    node = TlsIdentity(ClusterSecret(NEW), ANNA, clock=lambda: clock[0])
    first = node.server_context()
    clock[0] = NOW + LEAF_LIFE / 2 - timedelta(seconds=1)
    assert node.server_context() is first

    clock[0] = NOW + LEAF_LIFE / 2
    renewed = node.server_context()

    assert renewed is not first
    assert node.server_context() is renewed


def test_a_clock_that_was_set_back_behind_a_certificate_renews_it() -> None:
    clock = [NOW + timedelta(days=10)]
    node = TlsIdentity(ClusterSecret(NEW), ANNA, clock=lambda: clock[0])
    with pytest.raises(ssl.SSLCertVerificationError, match="not yet valid"):
        meet(node, identity(BERT, NEW))

    clock[0] = NOW

    meet(node, identity(BERT, NEW))
    assert node.shown_since < NOW


def test_a_renewal_does_not_undo_a_replacement_that_came_meanwhile() -> None:
    class Slow(SecretCredentials):
        """While it makes a certificate anew, another thread has replaced it."""

        def show(self, node_id: NodeId, now: datetime) -> Shown:
            if now == NOW:
                node.replace(SecretCredentials(ClusterSecret(NEW)))
            return super().show(node_id, now)

    clock = [NOW - LEAF_LIFE / 2]
    node = TlsIdentity(Slow(ClusterSecret(OLD)), ANNA, clock=lambda: clock[0])
    clock[0] = NOW

    node.server_context()

    meet(node, identity(BERT, NEW))


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        {},
        {"subjectAltName": (("DNS", f"butterfly:node:{ANNA}"),)},
        {"subjectAltName": (("URI", "butterfly:node:x"),)},
        {"subjectAltName": (("URI", f"other:node:{ANNA}"),)},
        {"subjectAltName": tuple(("URI", f"butterfly:node:{n}") for n in (ANNA, BERT))},
    ],
)
def test_a_certificate_that_does_not_name_one_node_is_not_authenticated(
    certificate: dict[str, object] | None,
) -> None:
    with pytest.raises(NotAuthenticated):
        node_id_of(certificate)
