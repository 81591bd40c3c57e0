import asyncio
import logging

import pytest

from butterfly import __version__
from butterfly.node.pulse import Pulse
from butterfly.node.replica import Replica
from butterfly_cluster.commands import (
    ActAsCoordinator,
    MarkDown,
    Ordered,
    ReportDigests,
    encode_command,
)
from butterfly_cluster.state import Acting
from butterfly_core.errors import InvalidValue
from tests.support.clusters import active, loading, node, registered


def test_a_committed_command_changes_the_state() -> None:
    replica = Replica(Pulse())

    replica.apply(1, encode_command(registered(1)))

    assert set(replica.state.members) == {node(1)}


def test_an_entry_that_is_no_command_is_counted_and_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    replica = Replica(Pulse())
    with caplog.at_level(logging.ERROR):
        replica.apply(1, b'{"kind":"format_disk"}')

    assert replica.rejected_total == 1
    assert replica.state.index == 0
    assert "log entry 1" in caplog.text


@pytest.mark.parametrize("digest", ["", "zz", "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n"])
def test_a_digest_that_is_none_changes_nothing_and_is_told_with_node_and_part(
    digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A root is computed of all that is in the state, by each coordinator anew."""
    replica = Replica(Pulse())
    replica.restore_state(loading(2))
    before = replica.state
    replica.apply(20, encode_command(ReportDigests(1, node(2), {"layers.3": digest})))

    assert (replica.rejected_total, replica.state) == (1, before)
    assert "part_digests.layers.3" in caplog.text
    assert node(2) in caplog.text


def test_the_order_of_a_coordinator_that_was_replaced_is_counted_and_changes_nothing() -> None:
    replica = Replica(Pulse())
    replica.restore_state(active(2))
    replica.apply(20, encode_command(ActAsCoordinator(Acting(2, node(2)))))

    replica.apply(21, encode_command(Ordered(Acting(1, node(1)), MarkDown(node(2), "late"))))

    assert replica.rejected_total == 1
    assert replica.state.members[node(2)].alive
    assert replica.state.index == 21


def test_a_snapshot_restores_everything() -> None:
    replica, other = Replica(Pulse()), Replica(Pulse())
    replica.restore_state(active(3))

    other.restore(replica.snapshot())()

    assert other.state == replica.state


def test_a_state_of_another_version_changes_nothing_and_names_this_one() -> None:
    replica = Replica(Pulse())
    replica.restore_state(active(3))
    before = replica.state

    with pytest.raises(InvalidValue, match=f"butterfly {__version__} cannot read .* members: "):
        replica.restore(b'{"members": 7}')

    assert replica.state == before


async def test_everybody_who_waits_is_woken_once_and_in_the_order_of_coming() -> None:
    pulse, woken = Pulse(), []

    async def wait(number: int) -> None:
        await pulse.wait(60.0)
        woken.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number in range(50):
            tasks.create_task(wait(number))
        await asyncio.sleep(0)
        pulse.notify()

    assert woken == list(range(50))


async def test_a_wait_ends_with_its_time() -> None:
    pulse = Pulse()

    await pulse.wait(0.0)
    pulse.notify()

    assert not pulse.waiting
