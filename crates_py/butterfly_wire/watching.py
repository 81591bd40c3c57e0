"""Notices that the files behind an identity have changed, and takes what is in them now."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from butterfly_core.errors import ConfigError
from butterfly_core.ids import NodeId
from butterfly_wire.credentials import CredentialSource
from butterfly_wire.identity import TlsIdentity, now_utc

LOOK_SECONDS = 1.0
WARNED_BEFORE = timedelta(days=3)
"""A certificate that nobody renews is a problem so long before its end."""
_Signature = tuple[tuple[int, ...], ...]
_log = logging.getLogger(__name__)


class CredentialWatch:
    """One identity, and looks at its files now and then.

    A change counts once it was seen the same twice, so that a file that is being written is not
    read half. Files that cannot be used are a problem, and what was in use stays.
    """

    def __init__(
        self,
        source: CredentialSource,
        node_id: NodeId,
        *,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        """Raises ConfigError when the files cannot be used now."""
        self._source = source
        self._clock = clock
        # Before the first reading, so that no change after it is missed.
        self._used = self._seen = self._signature()
        self.identity = TlsIdentity(source.load(), node_id, clock=clock)
        self._unusable: str | None = None
        self.changes_count = 0

    @property
    def problem(self) -> str | None:
        """What a person has to mend, or None."""
        return self._unusable or self._ending()

    async def run(
        self, told: Callable[[], None] = lambda: None, *, every_seconds: float = LOOK_SECONDS
    ) -> None:
        """Look again and again, until cancelled; ``told`` is called after every look."""
        while True:
            await asyncio.sleep(every_seconds)
            await asyncio.to_thread(self.look)  # a disk may hang, and a key takes milliseconds
            told()

    def look(self) -> None:
        """Look once. Never raises for what is in the files."""
        now = self._signature()
        if now == self._used or now != self._seen:
            self._seen = now
            return
        try:
            self.identity.replace(self._source.load())
        except (ConfigError, OSError) as error:
            self._fail(f"{error}; the node goes on with what it had before")
            return
        self._used, self._unusable = now, None
        self.changes_count += 1
        used = self.identity.credentials
        _log.info("new credentials: %s mints, accepted: %s", used.mints, ", ".join(used.accepts))

    def _fail(self, problem: str) -> None:
        """The next look tries again: a disk or a want of descriptors may be the reason."""
        if problem != self._unusable:
            _log.error("new credentials cannot be used: %s", problem)
        self._unusable = problem

    def _signature(self) -> _Signature:
        return tuple(_signature(path) for path in self._source.paths)

    def _ending(self) -> str | None:
        since, until, now = self.identity.shown_since, self.identity.shown_until, self._clock()
        files = ", ".join(str(path) for path in self._source.paths)
        whose = f"the certificate of this node ({files})"
        if now < since:
            return (
                f"{whose} is not yet valid: valid from {since:%Y-%m-%d %H:%M} UTC, and this "
                f"machine's clock says {now:%Y-%m-%d %H:%M}; check the clock"
            )
        if until - now > WARNED_BEFORE:
            return None
        when = "has expired" if until <= now else "expires soon"
        return f"{whose} {when}: valid to {until:%Y-%m-%d %H:%M} UTC"


def _signature(path: Path) -> tuple[int, ...]:
    try:
        seen = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    # The change time moves with a changed mode as well, which may mend the file.
    return (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
