"""A pipeline is stuck when nothing comes back, and not when it is only slow."""

from butterfly_engine.step_watch import StepWatch


def test_nothing_under_way_is_never_stuck() -> None:
    watch = StepWatch(60.0)
    watch.begun(1, 0.0)
    watch.ended(1, 1.0)

    assert watch.stuck(1e9) is None


def test_a_step_that_does_not_come_back_is_named() -> None:
    watch = StepWatch(60.0)
    watch.begun(1, 10.0)
    watch.begun(2, 20.0)

    assert watch.stuck(70.0) is None
    assert str(watch.stuck(70.5)).startswith("step 1 has been under way for 60.5 s")


def test_steps_that_are_slow_but_come_back_are_not_stuck() -> None:
    watch = StepWatch(60.0)
    for step_id in range(4):
        watch.begun(step_id, 0.0)
    for step_id in range(3):
        watch.ended(step_id, 50.0 * (step_id + 1))

    assert watch.stuck(209.0) is None
    assert str(watch.stuck(211.0)).startswith("step 3 ")


def test_a_pause_before_a_step_does_not_count() -> None:
    watch = StepWatch(60.0)
    watch.begun(1, 0.0)
    watch.ended(1, 1.0)
    watch.begun(2, 1000.0)

    assert watch.stuck(1059.0) is None
