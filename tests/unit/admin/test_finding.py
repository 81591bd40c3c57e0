"""How checks are run: side by side, in order, each to its own end."""

import threading
from collections.abc import Sequence

import pytest

from butterfly.admin.checks.finding import (
    Check,
    Finding,
    Verdict,
    failed,
    passed,
    run_checks,
    warned,
    worst,
)

FINE = passed("a", "fine")
ODD = warned("b", "odd", "look")
BAD = failed("c", "bad", "mend")


def test_findings_keep_the_order_of_the_checks_whatever_ends_first() -> None:
    second_done = threading.Event()

    def slow() -> Sequence[Finding]:
        assert second_done.wait(10)
        return [FINE]

    def quick() -> Sequence[Finding]:
        second_done.set()
        return [ODD, BAD]

    assert run_checks([Check("slow", slow, 10), Check("quick", quick, 10)]) == [FINE, ODD, BAD]


def test_a_crash_is_a_failure_of_that_check_alone() -> None:
    def crash() -> Sequence[Finding]:
        raise ZeroDivisionError("oops")

    crashed, fine = run_checks([Check("x", crash, 10), Check("a", lambda: [FINE], 10)])

    assert crashed.verdict is Verdict.FAIL
    assert "ZeroDivisionError: oops" in crashed.seen
    assert fine == FINE


def test_a_check_that_hangs_fails_and_holds_nobody_up() -> None:
    release = threading.Event()

    def hang() -> Sequence[Finding]:
        release.wait(10)
        return [FINE]

    try:
        late, fine = run_checks([Check("x", hang, 0.0), Check("a", lambda: [FINE], 10)])
    finally:
        release.set()

    assert (late.name, late.verdict) == ("x", Verdict.FAIL)
    assert "no answer within" in late.seen
    assert fine == FINE


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([], Verdict.PASS),
        ([FINE], Verdict.PASS),
        ([FINE, ODD], Verdict.WARN),
        ([BAD, ODD], Verdict.FAIL),
    ],
)
def test_the_worst_finding_counts(findings: list[Finding], verdict: Verdict) -> None:
    assert worst(findings) is verdict
