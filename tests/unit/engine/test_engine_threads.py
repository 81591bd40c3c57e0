"""Threads hand over in order, end when told, and no failure goes unheard."""

import threading

from butterfly_core.generation import TokensEmitted
from butterfly_engine.outbox import Outbox
from butterfly_engine.workers import Handover, Worker, join_all

SECONDS = 30.0


def test_a_failed_thread_is_heard() -> None:
    heard: list[Exception] = []

    def fail() -> None:
        raise ZeroDivisionError("oh")

    worker = Worker("failing", fail, heard.append)
    worker.start()

    assert join_all([worker], SECONDS)
    assert [type(error) for error in heard] == [ZeroDivisionError]


def test_a_thread_that_hangs_is_told_and_one_never_started_is_not_waited_for() -> None:
    release = threading.Event()

    def hang() -> None:
        release.wait(SECONDS)

    hanging = Worker("hanging", hang, lambda _: None)
    hanging.start()
    idle = Worker("idle", lambda: None, lambda _: None)

    assert not join_all([hanging], 0.01)
    assert join_all([idle], SECONDS)
    release.set()
    assert join_all([hanging], SECONDS)


def test_items_arrive_in_order_through_a_narrow_hand_over() -> None:
    handover: Handover[int] = Handover(2)
    seen: list[int] = []

    def read() -> None:
        while (item := handover.get()) is not None:
            seen.append(item)
            if item == 99:
                return

    reader = Worker("reader", read, lambda _: None)
    reader.start()
    assert all(handover.put(number) for number in range(100))

    assert reader.join(SECONDS)
    assert seen == list(range(100))


def test_closing_wakes_reader_and_writer() -> None:
    empty: Handover[int] = Handover(1)
    full: Handover[int] = Handover(1)
    full.put(1)
    results: list[object] = []
    reader = Worker("reader", lambda: results.append(empty.get()), lambda _: None)
    writer = Worker("writer", lambda: results.append(full.put(2)), lambda _: None)
    reader.start()
    writer.start()

    empty.close()
    full.close()

    assert join_all([reader, writer], SECONDS)
    assert sorted(map(str, results)) == ["False", "None"]


def event(number: int) -> TokensEmitted:
    return TokensEmitted("a", (number,))


def test_what_is_added_during_a_delivery_follows_in_order() -> None:
    seen: list[int] = []

    def take(events: list[TokensEmitted]) -> None:
        for one in events:
            seen.extend(one.token_ids)
            if one.token_ids[0] < 3:
                outbox.add([event(one.token_ids[0] + 1)])
                outbox.deliver()

    outbox = Outbox(lambda _: True, take)
    outbox.add([event(1)])
    outbox.deliver()

    assert seen == [1, 2, 3]


def test_events_that_stay_inside_reach_no_callback() -> None:
    calls: list[list[TokensEmitted]] = []
    outbox = Outbox(lambda one: one.token_ids != (1,), calls.append)

    outbox.add([event(1)])
    outbox.deliver()
    outbox.add([event(1), event(2)])
    outbox.deliver()

    assert calls == [[event(2)]]


def test_a_callback_that_failed_is_asked_again_next_time() -> None:
    calls: list[int] = []

    def take(events: list[TokensEmitted]) -> None:
        calls.append(len(events))
        if len(calls) == 1:
            raise KeyError("host")

    outbox = Outbox(lambda _: True, take)
    outbox.add([event(1)])
    try:
        outbox.deliver()
    except KeyError:
        outbox.add([event(2)])
    outbox.deliver()

    assert calls == [1, 1]
