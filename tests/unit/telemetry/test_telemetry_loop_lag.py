"""The sampler on a clock made of a list."""

import logging

import pytest

from butterfly_telemetry.loop_lag import LoopLagSampler


class Stop(Exception):
    """Ends the endless loop."""


class Clock:
    """Each sleep takes longer than asked by the next lag."""

    def __init__(self, lags: list[float]) -> None:
        self.now = 100.0
        self.lags = lags

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if not self.lags:
            raise Stop
        self.now += seconds + self.lags.pop(0)


async def sampled(lags: list[float]) -> tuple[list[float], LoopLagSampler]:
    clock, heard = Clock(lags), list[float]()
    sampler = LoopLagSampler(heard.append, clock=clock, sleep=clock.sleep)
    with pytest.raises(Stop):
        await sampler.run()
    return heard, sampler


async def test_each_lag_is_told_and_the_longest_kept() -> None:
    heard, sampler = await sampled([0.0, 0.03, 0.01])

    assert heard == pytest.approx([0.0, 0.03, 0.01])
    assert sampler.lag_max_seconds == pytest.approx(0.03)


async def test_an_early_wake_is_no_lag() -> None:
    heard, _ = await sampled([-0.01])

    assert heard == [0.0]


async def test_a_long_lag_is_an_event(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await sampled([0.05, 0.2])

    assert [record.getMessage() for record in caplog.records] == ["the event loop was 200 ms late"]
