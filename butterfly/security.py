"""From ``[security]`` to the TLS identity of a node, or of a command that asks one."""

from typing import TYPE_CHECKING, Any

from butterfly_core.ids import NodeId

if TYPE_CHECKING:
    from butterfly.config import NodeConfig
    from butterfly_wire.credentials import CredentialSource
    from butterfly_wire.identity import TlsIdentity
    from butterfly_wire.watching import CredentialWatch


def credential_source(config: "NodeConfig") -> "CredentialSource | None":
    """The files that prove membership; None for a node that has none (loopback, insecure)."""
    from butterfly_wire.credentials import CertificateFiles, SecretFile

    security = config.security
    ca, certificate, key = security.ca_file, security.certificate_file, security.private_key_file
    if ca and certificate and key:
        return CertificateFiles(ca, certificate, key)
    return SecretFile(security.cluster_secret_file) if security.cluster_secret_file else None


def tls_identity(config: "NodeConfig", me: NodeId) -> "tuple[TlsIdentity, CredentialWatch | None]":
    """A node's identity, and what keeps it up to date. Raises ConfigError."""
    from butterfly_wire.identity import TlsIdentity
    from butterfly_wire.secret import insecure_secret
    from butterfly_wire.watching import CredentialWatch

    source = credential_source(config)
    if source is None:
        return TlsIdentity(insecure_secret(config.cluster.cluster_name), me), None
    watch = CredentialWatch(source, me)
    return watch.identity, watch


def asking_identity(config: "NodeConfig", me: NodeId) -> "TlsIdentity":
    """For a command that asks nodes: as the node that the certificate names, else as ``me``.

    Raises ConfigError.
    """
    source = credential_source(config)
    named = source.load().named if source is not None else None
    return tls_identity(config, named or me)[0]


def security_view(config: "NodeConfig", tls: "TlsIdentity") -> dict[str, Any]:
    """The ``security`` part of ``/status``: which authority signs and which are accepted, so
    that the steps of a rotation can be compared from node to node; never a secret."""
    has_files = credential_source(config) is not None
    return {
        "data_plane": config.security.data_plane,
        "insecure": config.security.insecure or not has_files,
        "authenticated": has_files,
        "api_keys": config.security.api_keys_file is not None,
        "mints": tls.credentials.mints,
        "accepts": list(tls.credentials.accepts),
        "certificate_until": tls.shown_until.isoformat(timespec="seconds"),
    }
