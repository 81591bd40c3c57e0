"""A dead engine is visible until another says Hello."""

from typing import Any

from butterfly.channel import Hello, Statistics
from butterfly.node.engine import Death
from butterfly.node.listening import EngineEars
from butterfly.node.local import Local
from butterfly_cluster.lifecycle import EngineDied, Event
from butterfly_cluster.node_duties import Facts
from tests.support.clusters import CAPACITY, node, registered


class Desk:
    def __init__(self) -> None:
        self.told: list[str] = []

    def lose_all(self, reason: str) -> None:
        self.told.append(reason)


def test_a_death_is_a_problem_with_the_logs_last_lines_until_the_next_hello() -> None:
    local, desk, posted = Local(Facts(registered(1))), Desk(), list[Event]()
    unused: Any = None
    ears = EngineEars(
        node(1),
        local,
        effects=unused,
        desk=desk,  # type: ignore[arg-type] # a fake
        post=posted.append,
        capacity_share=0.5,
    )
    ears.hear(Hello("run 1", CAPACITY))
    ears.hear(Statistics({"requests_running": 3}))
    ears.mourn(Death("exit code 1", "ConfigError: there is no cuda:3"))

    message = local.problems["engine"].message
    assert "exit code 1" in message
    assert "there is no cuda:3" in message
    assert (local.engine_statistics, local.facts.engine) == ({}, None)
    assert posted == [EngineDied("exit code 1")]
    assert desk.told == ["the engine process ended: exit code 1"]

    ears.hear(Hello("run 2", CAPACITY))

    assert local.problems == {}
    assert local.facts.engine == "run 2"


def test_rot_that_the_scrub_finds_is_an_event_and_is_counted_over_engines() -> None:
    local = Local(Facts(registered(1)))
    unused: Any = None
    ears = EngineEars(
        node(1),
        local,
        effects=unused,
        desk=Desk(),  # type: ignore[arg-type] # a fake
        post=list[Event]().append,
        capacity_share=1.0,
    )
    for rotten, scrubbed in ((0, 100), (2, 300), (2, 400)):
        ears.hear(Statistics({"cache_rotten": rotten, "cache_scrubbed_bytes": scrubbed}))
    ears.mourn(Death("exit code 1", ""))
    ears.hear(Statistics({"cache_rotten": 1, "cache_scrubbed_bytes": 50}))

    assert (local.cache_rotten_total, local.cache_scrubbed_bytes_total) == (3, 450)
    first, second = local.events
    assert "2 cached tensors were damaged on the disk; they were dropped" in first
    assert "1 cached tensors" in second
