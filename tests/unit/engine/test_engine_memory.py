"""Free memory is what this process may take, not what the machine has."""

from pathlib import Path

import pytest

from butterfly_core.errors import WorldError
from butterfly_engine.memory import system_memory

GIB = 1 << 30


def machine(root: Path, **files: str) -> Path:
    written = {"proc/meminfo": "MemTotal:  16777216 kB\nMemAvailable: 8388608 kB\n"}
    written |= {name.replace("__", "/"): text for name, text in files.items()}
    for name, text in written.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_bare_machine_offers_what_is_available(tmp_path: Path) -> None:
    assert system_memory(machine(tmp_path)) == (8 * GIB, 16 * GIB)


def test_a_containers_limit_counts_without_its_reclaimable_cache(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        **{
            "sys__fs__cgroup__memory.max": f"{4 * GIB}\n",
            "sys__fs__cgroup__memory.current": f"{3 * GIB}\n",
            "sys__fs__cgroup__memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
        },
    )

    assert system_memory(root) == (3 * GIB, 4 * GIB)


def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        **{
            "sys__fs__cgroup__memory.max": "max\n",
            "sys__fs__cgroup__memory.current": "1\n",
            "sys__fs__cgroup__memory__memory.limit_in_bytes": "9223372036854771712\n",
            "sys__fs__cgroup__memory__memory.usage_in_bytes": "1\n",
        },
    )

    assert system_memory(root) == (8 * GIB, 16 * GIB)


def test_the_older_kind_of_container_counts_too(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        **{
            "sys__fs__cgroup__memory__memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys__fs__cgroup__memory__memory.usage_in_bytes": f"{GIB}\n",
        },
    )

    assert system_memory(root) == (GIB, 2 * GIB)


def test_a_machine_that_does_not_tell_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match="meminfo"):
        system_memory(tmp_path)
