"""The section ``[discovery]``: what each source of addresses needs to know."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from butterfly.config.fields import Section, read_address, read_addresses
from butterfly_core.address import Address


class DiscoverySection(Section):
    """``[discovery]``: how nodes are found when ``discovery_method`` is not ``static``."""

    dns_name: Annotated[
        str,
        Field(
            pattern=r"^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?)+$|^$",
            max_length=254,
            description="a DNS name with SRV, A or AAAA records, as _butterfly._tcp.example.com",
        ),
    ] = ""
    dns_servers: Annotated[
        tuple[Address, ...],
        BeforeValidator(read_addresses),
        Field(
            max_length=8,
            description='up to 8 DNS servers as IP:port, as ["10.0.0.2:53"]; none: the system\'s',
        ),
    ] = ()
    consul_url: Annotated[
        str,
        Field(
            pattern=r"^https?://[^\s/?#@]+/?$",
            description="the URL of a Consul agent without a path, as http://127.0.0.1:8500",
        ),
    ] = "http://127.0.0.1:8500"
    consul_token_file: Annotated[
        Path | None, Field(description="a file of this node with the ACL token")
    ] = None
    consul_ca_file: Annotated[
        Path | None, Field(description="a PEM file with the CA of Consul's certificate")
    ] = None
    consul_certificate_file: Annotated[
        Path | None, Field(description="a PEM file with this node's certificate for Consul")
    ] = None
    consul_key_file: Annotated[
        Path | None, Field(description="a PEM file with the key of that certificate")
    ] = None
    consul_service: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$",
            description="up to 63 letters, digits and dashes",
        ),
    ] = "butterfly"
    consul_datacenter: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_-]{0,64}$",
            description="up to 64 letters, digits, dashes and underscores; empty: the agent's own",
        ),
    ] = ""
    multicast_group: Annotated[
        Address,
        BeforeValidator(read_address),
        Field(description="a multicast group and port, as 239.255.70.70:7946"),
    ] = Address("239.255.70.70", 7946)
    multicast_interface: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_.:@-]{0,45}$",
            description="a network interface or one of its addresses; empty: the system chooses",
        ),
    ] = ""
