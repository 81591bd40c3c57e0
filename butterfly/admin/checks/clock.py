"""This machine's clock against others.

Certificates and S3 signatures are refused when it is off.
"""

import http.client
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from butterfly.admin.checks.finding import Finding, failed, passed, warned
from butterfly.admin.checks.situation import Situation
from butterfly.admin.node_http import offset_of
from butterfly_core.errors import ButterflyError

if TYPE_CHECKING:
    from butterfly.config import ModelSection

WARN_SECONDS = 5.0
FAIL_SECONDS = 120.0
ASK_SECONDS_MAX = 3.0
FIX = "synchronise the clock: timedatectl set-ntp true, or run chronyd"


def look_at_clock(situation: Situation) -> Sequence[Finding]:
    """The offset against the S3 server and against every member that answers."""
    found = []
    if situation.config and situation.config.model.source_type == "s3":
        url = s3_url(situation.config.model)
        if (offset := _offset(url)) is not None:
            found.append(judge(f"clock against {urlsplit(url).netloc}", offset))
    for peer, _ in situation.statuses():
        if (offset := _peer_offset(peer.clock_offset)) is not None:
            found.append(judge(f"clock against {urlsplit(peer.url).netloc}", offset))
    return found or [passed("clock", "no other clock at hand to compare with")]


def judge(name: str, offset_seconds: float) -> Finding:
    """A Date header has whole seconds, so an offset below a second means nothing."""
    way = "ahead of" if offset_seconds < 0 else "behind"
    seen = f"{abs(offset_seconds):.1f} s {way} the other (±1 s)"
    if abs(offset_seconds) >= FAIL_SECONDS:
        return failed(name, seen, FIX)
    if abs(offset_seconds) >= WARN_SECONDS:
        return warned(name, seen, FIX)
    return passed(name, seen)


def s3_url(model: "ModelSection") -> str:
    """Where the bucket is served; AWS when no endpoint is configured."""
    region = model.region or "us-east-1"
    return model.endpoint_url or f"https://s3.{region}.amazonaws.com"


def _peer_offset(ask: Callable[[], float | None]) -> float | None:
    try:
        return ask()
    except ButterflyError:
        return None


def _offset(url: str) -> float | None:
    """Any answer has a Date, a refusal too, so no key is needed."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=ASK_SECONDS_MAX)
    before = time.time()
    try:
        connection.request("HEAD", "/")
        return offset_of(connection.getresponse().getheader("Date"), before, time.time())
    except (OSError, http.client.HTTPException):  # the check of the source says why
        return None
    finally:
        connection.close()
