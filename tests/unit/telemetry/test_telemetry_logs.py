"""What a log line shows, and what it must not show."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from butterfly_core.errors import InvalidValue
from butterfly_telemetry.logs import LogFormat, configure_logs, hide_secrets

CONTEXT = {"node": "0a1b2c3d", "phase": "loading_weights", "progress": 45.2}
logger = logging.getLogger("butterfly.test")


@pytest.fixture(autouse=True)
def restored_root() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def written(log_format: LogFormat, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure_logs(level=level, log_format=log_format, context=lambda: CONTEXT, stream=stream)
    return stream


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_names_phase_and_progress(log_format: LogFormat) -> None:
    stream = written(log_format)
    logger.info("loaded %d of %d parts", 3, 7)

    line = stream.getvalue()
    assert "phase" in line
    assert "progress" in line
    assert "loaded 3 of 7 parts" in line
    assert line.count("\n") == 1


def test_a_json_line_is_one_document_with_the_extra_fields() -> None:
    stream = written("json")
    logger.warning("slow", extra={"seconds": 2.5, "peer": "ab"})

    document = json.loads(stream.getvalue())
    assert document["level"] == "WARNING"
    assert document["node"] == "0a1b2c3d"
    assert document["progress"] == 45.2
    assert (document["seconds"], document["peer"]) == (2.5, "ab")
    assert document["time"].endswith("Z")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_end_in_a_message_fakes_no_second_record(log_format: LogFormat) -> None:
    stream = written(log_format)
    logger.info("peer said %s", "hello\n2026-01-01 ERROR all is lost")

    assert stream.getvalue().count("\n") == 1


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_traceback_is_kept(log_format: LogFormat) -> None:
    stream = written(log_format)
    try:
        raise ValueError("the cause")
    except ValueError:
        logger.exception("it failed")

    assert "ValueError: the cause" in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Bearer sk-abc.def_123", "sk-abc.def_123"),
        ("GET /w?X-Amz-Signature=deadbeef&X-Amz-Date=1", "deadbeef"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI"),
        ('{"cluster_secret": "hunter2hunter2"}', "hunter2hunter2"),
        ("api_key=abcdefgh12345678", "abcdefgh12345678"),
        ("key id AKIAIOSFODNN7EXAMPLE was refused", "AKIAIOSFODNN7EXAMPLE"),
        ("https://user:pa55word@proxy:3128/", "pa55word"),
        ("password: correct-horse", "correct-horse"),
    ],
)
def test_a_secret_is_hidden(text: str, secret: str) -> None:
    assert secret not in hide_secrets(text)
    assert "[hidden]" in hide_secrets(text)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz 0123456789./-", max_size=80))
def test_plain_words_stay_as_they_are(text: str) -> None:
    hidden = hide_secrets(f"loaded {text}")

    assert hidden == f"loaded {text}" or "bearer " in text


def test_a_file_name_with_secret_in_it_is_no_secret() -> None:
    line = "cannot read cluster_secret_file /etc/butterfly/secret"

    assert hide_secrets(line) == line


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_secrets_are_hidden_in_messages_and_extra_fields(log_format: LogFormat) -> None:
    stream = written(log_format)
    logger.info("asked with Bearer %s", "abc123", extra={"header": "Bearer def456"})

    assert "abc123" not in stream.getvalue()
    assert "def456" not in stream.getvalue()


def test_configuring_again_replaces_and_does_not_double() -> None:
    first = written("text")
    second = written("text")
    logger.info("once")

    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


def test_the_level_decides_what_is_written() -> None:
    stream = written("text", level="warning")
    logger.info("quiet")
    logger.warning("loud")

    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(InvalidValue, match="debug, info, warning, error"):
        configure_logs(level="loud")
