"""How much memory this machine, or the container it is, has free; from files the kernel writes."""

from pathlib import Path

from butterfly_core.errors import WorldError

_UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2**63 for "no limit"


def system_memory(root: Path = Path("/")) -> tuple[int, int]:
    """(free, total) bytes that a new process may take. Raises WorldError when nothing tells."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if ":" in line}
        free, total = kilobytes["MemAvailable"] * 1024, kilobytes["MemTotal"] * 1024
    except (OSError, KeyError, ValueError, IndexError) as error:
        raise WorldError(f"/proc/meminfo does not tell this machine's memory: {error}") from error
    for limit, used in _container_limits(root):
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return free, total


def _container_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used) bytes of the cgroup this process sees as its own, v2 or v1."""
    folder = root / "sys/fs/cgroup"
    names = (
        (folder / "memory.max", folder / "memory.current", "inactive_file"),
        (
            folder / "memory/memory.limit_in_bytes",
            folder / "memory/memory.usage_in_bytes",
            "total_inactive_file",
        ),
    )
    found = []
    for limit_path, used_path, reclaimable_name in names:
        limit, used = _number(limit_path), _number(used_path)
        if limit is not None and used is not None and limit < _UNLIMITED:
            cached = _statistic(limit_path.parent / "memory.stat", reclaimable_name)
            found.append((limit, max(0, used - cached)))
    return found


def _number(path: Path) -> int | None:
    """The file's number; None when it is missing or says ``max``."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _statistic(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)
