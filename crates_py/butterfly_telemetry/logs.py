"""Logs of a node: one line per record, as text or JSON, each with node, phase and progress.

``phase`` and ``progress`` stand in every line once they are known, so a person can follow a start
with ``grep -E "phase|progress"``. Values that look like secrets are blotted out before they are
written, and a line end inside a message cannot fake a second record.
"""

import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from butterfly_core.errors import InvalidValue

LogFormat = Literal["text", "json"]
Context = Callable[[], Mapping[str, object]]

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_QUIET = ("asyncio", "boto3", "botocore", "s3transfer", "urllib3", "aiohttp.access")
_BLOT = "[hidden]"
_SECRETS = (
    re.compile(r"(?i)(\bbearer\s+)[^\s\"',;]+"),
    re.compile(r"(?i)(\bX-Amz-(?:Signature|Credential|Security-Token)=)[^&\s\"']+"),
    re.compile(
        r"(?i)(\b[\w-]*(?:secret|password|passwd|api[_-]?key|access[_-]?key|session[_-]?token)"
        r"[\w-]*[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&}]+"
    ),
    re.compile(r"()\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"(://[^/\s:@]+:)[^@\s/]+(?=@)"),
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LINE_ENDS = str.maketrans({"\n": "\\n", "\r": "\\r", "\x1b": "\\x1b", "\x00": "\\x00"})


def hide_secrets(text: str) -> str:
    """Blot out bearer keys, signatures, passwords in URLs and ``…secret=…`` values."""
    for pattern in _SECRETS:
        text = pattern.sub(rf"\g<1>{_BLOT}", text)
    return text


class _Formatter(logging.Formatter):
    """What text and JSON share: the fields of a record, in order."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        return {**self._context(), **extra}

    @staticmethod
    def _time(record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _trace(self, record: logging.LogRecord) -> str | None:
        return self.formatException(record.exc_info) if record.exc_info else None


class TextFormatter(_Formatter):
    """``TIME LEVEL LOGGER node=… phase=… progress=… message``, then a traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in self._fields(record).items())
        head = f"{self._time(record)} {record.levelname} {record.name} {fields}".rstrip()
        line = f"{head} {record.getMessage()}".translate(_LINE_ENDS)
        trace = self._trace(record)
        return hide_secrets(f"{line}\n{trace}" if trace else line)


class JsonFormatter(_Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": self._time(record),
            "level": record.levelname,
            "logger": record.name,
        }
        for name, value in self._fields(record).items():
            document.setdefault(name, _plain(value))
        document["message"] = hide_secrets(record.getMessage())
        if trace := self._trace(record):
            document["trace"] = hide_secrets(trace)
        return json.dumps(document, ensure_ascii=False)


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    return hide_secrets(str(value))


def configure_logs(
    *,
    level: str = "info",
    log_format: LogFormat = "text",
    context: Context = dict,
    stream: TextIO | None = None,
) -> logging.Handler:
    """Send all records of the process to one stream (standard error unless given).

    ``context`` is asked for each record: ``{"node": …, "phase": …, "progress": …}``. Calling it
    again replaces the handler of the last call. Returns the handler. Raises InvalidValue for an
    unknown level.
    """
    if level not in _LEVELS:
        raise InvalidValue(f"log level {level!r}; choose one of {', '.join(_LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.set_name("butterfly")
    handler.setFormatter(JsonFormatter(context) if log_format == "json" else TextFormatter(context))
    root = logging.getLogger()
    for old in [each for each in root.handlers if each.get_name() == "butterfly"]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(_LEVELS[level])
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, _LEVELS[level]))
    return handler
