"""What ``up`` is about to start: one folder, ports and a configuration per node. Mostly pure.

``lay_out`` decides, ``toml_of`` writes a node's configuration, ``write`` puts all on disk.
"""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from butterfly.admin.exits import UsageError
from butterfly.admin.model_source import ModelSource

NODES_MAX = 64
PORTS_TRIED_MAX = 1000
LAYOUT_FILE = "layout.json"
SECRET_FILE = "cluster.secret"
NEVER_OVERRIDDEN = {"node_advertise_address", "cluster_discovery_method", "security_api_keys_file"}


@dataclass(frozen=True, slots=True)
class NodeLayout:
    """One node of a local cluster. ``folder`` holds its configuration, log and data."""

    name: str
    role: str
    port: int
    http_port: int
    folder: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def config_path(self) -> Path:
        return self.folder / "node.toml"

    @property
    def log_path(self) -> Path:
        return self.folder / "node.log"

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"


@dataclass(frozen=True, slots=True)
class ClusterLayout:
    """A local cluster: the first node prefers to coordinate, the others look for it."""

    directory: Path
    model: ModelSource
    nodes: tuple[NodeLayout, ...]


def lay_out(
    directory: Path,
    model: ModelSource,
    count: int,
    *,
    port_base: int,
    http_port_base: int,
    is_free: Callable[[int], bool],
) -> ClusterLayout:
    """Choose the first free ports from the two bases up. Raises UsageError."""
    if not 1 <= count <= NODES_MAX:
        raise UsageError(f"--nodes {count}: a local cluster has from 1 to {NODES_MAX} nodes")
    taken: set[int] = set()
    ports = [_next_port(port_base, is_free, taken) for _ in range(count)]
    http_ports = [_next_port(http_port_base, is_free, taken) for _ in range(count)]
    nodes = tuple(
        NodeLayout(
            name=f"node-{i + 1}",
            role="worker" if i else "coordinator",
            port=ports[i],
            http_port=http_ports[i],
            folder=directory / f"node-{i + 1}",
        )
        for i in range(count)
    )
    return ClusterLayout(directory, model, nodes)


def _next_port(base: int, is_free: Callable[[int], bool], taken: set[int]) -> int:
    if not 1 <= base <= 65535:
        raise UsageError(f"port {base}: a port is from 1 to 65535")
    for port in range(base, min(base + PORTS_TRIED_MAX, 65536)):
        if port not in taken and is_free(port):
            taken.add(port)
            return port
    raise UsageError(
        f"no free port from {base} up; name another start with --port-base or --http-port-base"
    )


Sections = Mapping[str, Mapping[str, object]]


def sections_of(layout: ClusterLayout, node: NodeLayout) -> Sections:
    """The node's configuration; every value is a string, number, list of strings or None."""
    first = layout.nodes[0]
    count = len(layout.nodes)
    model = layout.model
    return {
        "cluster": {
            "cluster_name": "local",
            "seed_nodes": [] if node is first else [first.address],
            "quorum_size": count // 2 + 1,  # so that one may be killed, to see the rest go on
            "plan_grace_seconds": 3.0,
        },
        "model": {
            "source_type": model.source_type,
            "source_path": model.source_path,
            "endpoint_url": model.endpoint_url,
            "region": model.region,
            "name": model.name,
        },
        "node": {
            "role": node.role,
            "bind_address": node.address,
            "http_address": f"127.0.0.1:{node.http_port}",
            "data_dir": str(node.data_dir),
            "capacity": share_of_memory(count),
        },
        "security": {"cluster_secret_file": str(layout.directory / SECRET_FILE)},
    }


def toml_of(layout: ClusterLayout, node: NodeLayout) -> str:
    """The node's configuration file."""
    title = f"# {node.name} of a local cluster, written by butterfly-admin up\n"
    sections = sections_of(layout, node)
    return title + "\n".join(_section(name, values) for name, values in sections.items())


def without_overrides(environ: Mapping[str, str], layout: ClusterLayout) -> dict[str, str]:
    """The environment less the variables that would overrule what makes the nodes differ.

    One ``BUTTERFLY_NODE_HTTP_ADDRESS`` would send all nodes to one port; others, such as
    ``BUTTERFLY_NODE_LOG_LEVEL``, are left.
    """
    written = {
        f"{section}_{key}"
        for section, values in sections_of(layout, layout.nodes[0]).items()
        for key in values
    }
    barred = {f"BUTTERFLY_{name}".upper() for name in written | NEVER_OVERRIDDEN}
    return {name: value for name, value in environ.items() if name not in barred}


def share_of_memory(count: int) -> float:
    """An equal share each, cut (never rounded up) so that together they offer at most all."""
    return 1000 // count / 1000


def _section(name: str, values: Mapping[str, object]) -> str:
    # JSON's strings, numbers and lists of strings are TOML's too
    lines = [
        f"{key} = {json.dumps(value, ensure_ascii=False)}\n"
        for key, value in values.items()
        if value is not None
    ]
    return f"[{name}]\n{''.join(lines)}"


def write(layout: ClusterLayout) -> None:
    """Make the folders, the cluster secret (kept when it is there) and the configurations.

    Raises UsageError when the folder holds a cluster of another size: its members would wait
    for nodes that never come.
    """
    layout.directory.mkdir(parents=True, exist_ok=True)
    _check_same_size(layout)
    _write_secret(layout.directory / SECRET_FILE)
    for node in layout.nodes:
        node.data_dir.mkdir(parents=True, exist_ok=True)
        node.config_path.write_text(toml_of(layout, node), encoding="utf-8")


def _check_same_size(layout: ClusterLayout) -> None:
    path = layout.directory / LAYOUT_FILE
    count = len(layout.nodes)
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8")).get("nodes")
        if before != count:
            raise UsageError(
                f"{layout.directory} holds a cluster of {before} nodes, not {count}; "
                f"say --nodes {before}, or name an empty --directory"
            )
    path.write_text(json.dumps({"nodes": count}), encoding="utf-8")


def _write_secret(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32) + "\n")
