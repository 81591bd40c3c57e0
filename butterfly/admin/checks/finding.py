"""What a check found, and how checks are run: side by side, each with its own time limit."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """FAIL: Butterfly will not work as configured. WARN: it will, but look at this."""

    PASS = "PASS"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: what was seen, and what to do about it."""

    name: str
    verdict: Verdict
    seen: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """A look at one subject. It may use sockets and disks, but must end by itself in time."""

    name: str
    look: Callable[[], Sequence[Finding]]
    timeout_seconds: float


def passed(name: str, seen: str) -> Finding:
    return Finding(name, Verdict.PASS, seen)


def warned(name: str, seen: str, fix: str) -> Finding:
    return Finding(name, Verdict.WARN, seen, fix)


def failed(name: str, seen: str, fix: str) -> Finding:
    return Finding(name, Verdict.FAIL, seen, fix)


def worst(findings: Sequence[Finding]) -> Verdict:
    """FAIL if anything failed, else WARN if anything warned."""
    seen = {finding.verdict for finding in findings}
    return next((v for v in (Verdict.FAIL, Verdict.WARN) if v in seen), Verdict.PASS)


def run_checks(checks: Sequence[Check]) -> list[Finding]:
    """The findings of all checks, in their order; all looks run at the same time."""
    running = [_Running(check) for check in checks]
    return [finding for one in running for finding in one.findings()]


class _Running:
    """One check in a thread of its own, which is left behind when it does not end in time."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._findings: list[Finding] = []
        self._deadline = time.monotonic() + check.timeout_seconds
        self._thread = threading.Thread(target=self._look, name=f"check {check.name}", daemon=True)
        self._thread.start()

    def findings(self) -> list[Finding]:
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if self._thread.is_alive():
            return [self._too_late()]
        return self._findings

    def _look(self) -> None:
        try:
            self._findings = list(self._check.look())
        except Exception as error:  # noqa: BLE001 - whatever breaks a check is what it found
            self._findings = [_crash(self._check.name, error)]

    def _too_late(self) -> Finding:
        return failed(
            self._check.name,
            f"no answer within {self._check.timeout_seconds:.0f} s",
            "something it asks (a name server, a disk, a server) hangs; look at the other checks",
        )


def _crash(name: str, error: Exception) -> Finding:
    return failed(
        name,
        f"the check itself broke: {type(error).__name__}: {error}",
        "report this with the line above; the other checks are not touched by it",
    )
