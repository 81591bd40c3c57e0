"""Threads that work off a list: all of it, or the first failure."""

import threading

import pytest

from butterfly_weights.crew import work_off


class Hands:
    """A worker that notes what it did, fails at 13 and waits, until interrupted, at 99."""

    def __init__(self, done: list[int]) -> None:
        self.done = done
        self.woken = threading.Event()
        self.closed = False

    def do(self, task: int) -> None:
        if task == 13:
            raise ValueError("thirteen")
        if task == 99:
            assert self.woken.wait(60)
            raise RuntimeError("woken")
        self.done.append(task)

    def interrupt(self) -> None:
        self.woken.set()

    def close(self) -> None:
        self.closed = True


def run(tasks: list[int], *, poll_fails: bool = False) -> tuple[list[int], list[Hands]]:
    done: list[int] = []
    hands: list[Hands] = []

    def make() -> Hands:
        hands.append(Hands(done))
        return hands[-1]

    def poll() -> None:
        if poll_fails:
            raise InterruptedError("stop")

    try:
        work_off(tasks, make, wanted=lambda: 3, poll=poll, poll_seconds=0.0)
    finally:
        assert all(worker.closed for worker in hands)
    return done, hands


def test_every_task_is_done_once_by_as_many_as_there_is_work_for() -> None:
    done, hands = run(list(range(12)))
    assert sorted(done) == list(range(12))
    assert len(hands) == 3
    assert len(run([5])[1]) == 1
    assert run([]) == ([], [])


def test_the_first_failure_wakes_the_others_and_is_raised() -> None:
    with pytest.raises(ValueError, match="thirteen"):
        run([99, 99, 13, 1, 2, 3])


def test_what_the_caller_raises_wakes_everyone_too() -> None:
    with pytest.raises(InterruptedError):
        run([99, 99, 99], poll_fails=True)


def test_more_hands_come_when_more_are_wanted_and_none_without_work() -> None:
    done: list[int] = []
    hands: list[Hands] = []
    wanted = 1

    def make() -> Hands:
        hands.append(Hands(done))
        return hands[-1]

    def poll() -> None:
        nonlocal wanted
        wanted = 3
        if len(hands) == 3:  # the first two wait at 99
            for worker in hands:
                worker.interrupt()

    with pytest.raises(RuntimeError, match="woken"):
        work_off([99, 99, 1, 2], make, wanted=lambda: wanted, poll=poll, poll_seconds=0.001)
    assert len(hands) == 3

    hands.clear()
    wanted = 1
    work_off([1], make, wanted=lambda: wanted, poll=poll, poll_seconds=0.001)
    assert len(hands) == 1
