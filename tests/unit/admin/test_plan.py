"""Machines as people write them and as members tell them."""

from typing import Any

import pytest

from butterfly.admin.exits import UsageError
from butterfly.admin.plan import ASSUMED_BYTES_PER_SECOND, members_as_machines, parse_machine
from butterfly_core.errors import Refused

TOLD: dict[str, Any] = {
    "device": "cuda:0",
    "device_name": "H100",
    "memory_free_bytes": 1000,
    "memory_total_bytes": 2000,
    "memory_bytes_per_second": 3e12,
    "flops_per_second": 1e15,
}


def test_a_machine_has_a_name_memory_and_perhaps_a_bandwidth() -> None:
    plain, fast = parse_machine("a=24GiB"), parse_machine("b=1GiB,900GB/s")

    assert (plain.node_id, plain.capacity.memory_free_bytes) == ("a", 24 << 30)
    assert plain.capacity.memory_bytes_per_second == ASSUMED_BYTES_PER_SECOND
    assert fast.capacity.memory_bytes_per_second == 900e9


@pytest.mark.parametrize("text", ["", "a", "=1GiB", "a=", "a=1GiB,fast", "a=1GiB,1GB,1GB"])
def test_what_is_no_machine_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--node"):
        parse_machine(text)


def test_live_members_that_tell_their_capacity_are_machines() -> None:
    members = [
        {"node_id": "a", "alive": True, **TOLD},
        {"node_id": "b", "alive": False, **TOLD},
        {"node_id": "c", "alive": True, "memory_free_bytes": None},
    ]
    (machine,) = members_as_machines({"members": members})

    assert machine.node_id == "a"
    assert machine.capacity.memory_free_bytes == 1000


def test_a_speed_that_a_member_does_not_tell_is_assumed() -> None:
    (machine,) = members_as_machines({"members": [{"node_id": "a", "memory_free_bytes": 7}]})

    assert machine.capacity.memory_bytes_per_second == ASSUMED_BYTES_PER_SECOND


@pytest.mark.parametrize("told", [{}, {"memory_free_bytes": None}, {"memory_free_bytes": "much"}])
def test_members_without_a_readable_capacity_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        members_as_machines({"members": [{"node_id": "a", **told}]})
