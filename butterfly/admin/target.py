"""Which node a command talks to, and with which key: --url, --config, --api-key-file."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from butterfly.admin.exits import UsageError
from butterfly.admin.node_http import NodeHttp, node_at
from butterfly_core.address import Address, parse_address

if TYPE_CHECKING:
    from butterfly.config import NodeConfig

DEFAULT_URL = "http://127.0.0.1:8080"
KEY_FILE_BYTES_MAX = 65536


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags with which one names a node."""
    parser.add_argument("--url", help=f"a node's HTTP address (default: {DEFAULT_URL})")
    parser.add_argument("--config", type=Path, metavar="FILE", help="a node's configuration file")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file whose first line is an API key"
    )


def read_config(path: Path) -> "NodeConfig":
    """Load a node's configuration as the node itself would. Raises ConfigError."""
    from butterfly.config import load_config

    return load_config(path, environ=os.environ, flags={})


def target_of(arguments: argparse.Namespace) -> NodeHttp:
    """The node that the flags name. Raises UsageError, ConfigError, InvalidValue."""
    config = read_config(arguments.config) if arguments.config else None
    url = arguments.url
    if url is None:
        url = url_of(parse_address(str(config.node.http_address))) if config else DEFAULT_URL
    key_file = arguments.api_key_file
    if key_file is None and config and config.security.api_keys_file:
        key_file = Path(config.security.api_keys_file)
    return node_at(url, read_api_key(key_file) if key_file else None)


def url_of(address: Address) -> str:
    """Where to dial a node that listens there; a wildcard is dialled over loopback."""
    if address.is_wildcard:
        loopback = "::1" if ":" in address.host else "127.0.0.1"
        return f"http://{Address(loopback, address.port)}"
    return f"http://{address}"


def read_api_key(path: Path) -> str:
    """The first line that is neither empty nor a comment. Raises UsageError."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = file.read(KEY_FILE_BYTES_MAX).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {path} cannot be read: {error}") from error
    for line in lines:
        if (key := line.strip()) and not key.startswith("#"):
            if not key.isascii() or not key.isprintable():
                raise UsageError(
                    f"--api-key-file {path}: a key has printable ASCII characters only"
                )
            return key
    raise UsageError(f"--api-key-file {path} holds no key; write one key on a line of its own")
