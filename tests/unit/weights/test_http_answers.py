"""What a response means."""

import pytest

from butterfly_core.errors import ModelError, SourceError
from butterfly_weights.errors import AccessDenied, NotFound, SourceChanged, TransientFailure
from butterfly_weights.http_answers import (
    check_range,
    check_whole,
    condition_of,
    error_of,
    out_of_range,
    plain_etag,
    read_refusal,
    version_of,
)
from butterfly_weights.source import ObjectInfo

INFO = ObjectInfo("m.safetensors", 100, "abc")
GOOD = {"content-range": "bytes 10-29/100", "content-length": "20", "etag": '"abc"'}


@pytest.mark.parametrize("status", [200, 206])
def test_the_right_range_of_the_right_version_is_taken(status: int) -> None:
    check_range(status, GOOD, INFO, 10, 20)
    check_range(status, GOOD | {"content-range": "bytes 10-29/*"}, INFO, 10, 20)
    check_range(status, GOOD | {"etag": "abc"}, INFO, 10, 20)


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        (GOOD | {"etag": '"xyz"'}, SourceChanged),
        (GOOD | {"content-range": "bytes 10-29/101"}, SourceChanged),
        (GOOD | {"content-range": "bytes 0-19/100"}, SourceError),
        (GOOD | {"content-range": "bytes 10-29"}, SourceError),
        (GOOD | {"content-length": "21"}, SourceError),
        (GOOD | {"content-encoding": "br"}, SourceError),
        (GOOD | {"transfer-encoding": "chunked"}, SourceError),
        ({"content-length": "20", "etag": '"abc"'}, SourceError),
    ],
)
def test_any_other_answer_is_refused(headers: dict[str, str], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"m\.safetensors"):
        check_range(206, headers, INFO, 10, 20)


def test_a_refusal_is_read_from_its_body_or_else_its_status() -> None:
    body = b"<Error><Code>SlowDown</Code></Error>"

    assert read_refusal(503, {}, body).code == "SlowDown"
    assert read_refusal(404, {}, b"").code == "NoSuchKey"
    assert read_refusal(418, {}, b"<Code>&evil;</Code>").code == "HTTP 418"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (500, "InternalError", TransientFailure),
        (503, "SlowDown", TransientFailure),
        (429, "", TransientFailure),
        (400, "RequestTimeout", TransientFailure),
        (404, "NoSuchKey", NotFound),
        (403, "AccessDenied", AccessDenied),
        (401, "", AccessDenied),
        (301, "PermanentRedirect", SourceError),
    ],
)
def test_only_what_may_pass_is_tried_again(status: int, code: str, kind: type[Exception]) -> None:
    refusal = read_refusal(status, {"retry-after": "7"}, f"<Code>{code}</Code>".encode())
    error = error_of(refusal, "m", who="me")

    assert type(error) is kind
    if isinstance(error, TransientFailure):
        assert error.retry_after_seconds == 7
        assert error.slow_down is (status in (429, 503))


def test_a_whole_object_must_say_its_size_and_keep_the_limit() -> None:
    assert check_whole({"content-length": "5"}, "m", bytes_max=5) == 5
    with pytest.raises(ModelError, match="6 bytes; at most 5"):
        check_whole({"content-length": "6"}, "m", bytes_max=5)
    for odd in ({}, {"content-length": "²"}, {"content-length": "9" * 5000}):
        with pytest.raises(SourceError, match="no Content-Length"):
            check_whole(odd, "m", bytes_max=5)


def test_a_range_beyond_the_end_tells_both_sizes() -> None:
    error = out_of_range({"content-range": "bytes */17"}, INFO, 50)

    assert "100 bytes" in str(error)
    assert "17" in str(error)


def test_quotes_of_an_etag_are_no_part_of_it() -> None:
    assert plain_etag(' "a-2" ') == plain_etag("a-2") == "a-2"


DATE = "Tue, 01 Jan 2030 00:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "version", "condition"),
    [
        ({"etag": '"abc"', "last-modified": DATE}, "abc", {"If-Match": '"abc"'}),
        ({"etag": 'W/"abc"'}, "W/abc", {}),
        ({"last-modified": DATE}, f"modified: {DATE}", {"If-Unmodified-Since": DATE}),
        ({"etag": '""', "last-modified": DATE}, f"modified: {DATE}", {"If-Unmodified-Since": DATE}),
        ({"etag": '"a\r\n b"'}, "a b", {"If-Match": '"a b"'}),
        ({}, "", {}),
    ],
)
def test_a_version_is_told_and_asked_for_as_the_server_can(
    headers: dict[str, str], version: str, condition: dict[str, str]
) -> None:
    assert version_of(headers) == version
    assert condition_of(ObjectInfo("m", 1, version)) == condition


def test_a_weak_etag_is_compared_weakly() -> None:
    weak = ObjectInfo("m.safetensors", 100, "W/abc")
    check_range(206, GOOD, weak, 10, 20)
    check_range(206, GOOD | {"etag": 'W/"abc"'}, INFO, 10, 20)
    with pytest.raises(SourceChanged, match="ETag W/xyz"):
        check_range(206, GOOD | {"etag": 'W/"xyz"'}, weak, 10, 20)


def test_an_object_known_by_its_date_is_compared_by_it() -> None:
    dated = ObjectInfo("m.safetensors", 100, f"modified: {DATE}")
    check_range(206, GOOD | {"last-modified": DATE}, dated, 10, 20)
    with pytest.raises(SourceChanged, match="Last-Modified yesterday"):
        check_range(206, GOOD | {"last-modified": "yesterday"}, dated, 10, 20)
    with pytest.raises(SourceError, match="no Last-Modified"):
        check_range(206, GOOD, dated, 10, 20)
