"""How long the node waits before it starts its engine again."""

from butterfly.node.engine import pause_seconds


def test_each_death_without_a_load_doubles_the_pause_up_to_half_a_minute() -> None:
    assert [pause_seconds(deaths) for deaths in range(1, 8)] == [1, 2, 4, 8, 16, 30, 30]
    assert pause_seconds(1_000_000) == 30
