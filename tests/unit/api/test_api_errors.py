"""Whose fault it was, as HTTP tells it; and the bytes of an event."""

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from butterfly.api import sse
from butterfly.api.errors import (
    BadRequest,
    BodyTooLarge,
    BodyTooSlow,
    ForeignOrigin,
    InternalError,
    KeyMissing,
    ModelNotFound,
    TooManyRequests,
    failure_of,
    failure_of_http,
)
from butterfly_core.errors import (
    ButterflyError,
    EngineLost,
    NotServing,
    RequestError,
    StorageError,
    Unreachable,
)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (RequestError("no"), 400, None),
        (BadRequest("no", param="n", code="invalid_value"), 400, "invalid_value"),
        (ModelNotFound("no"), 404, "model_not_found"),
        (KeyMissing("no"), 401, "invalid_api_key"),
        (ForeignOrigin("no"), 403, "foreign_origin"),
        (BodyTooSlow("no"), 408, "request_timeout"),
        (BodyTooLarge("no"), 413, "request_too_large"),
        (TooManyRequests("no"), 429, "too_many_requests"),
        (NotServing("no", phase="election"), 503, "not_serving"),
        (EngineLost("no"), 503, "engine_lost"),
        (Unreachable("no"), 503, "unreachable"),
        (StorageError("no"), 500, "internal"),
        (InternalError(), 500, "internal"),
    ],
)
def test_an_error_has_a_status_and_openais_shape(
    error: ButterflyError, status: int, code: str | None
) -> None:
    failure = failure_of(error)
    body = failure.body()["error"]

    assert failure.status == status
    assert body["code"] == code
    assert {"message", "type", "param", "code"} <= body.keys()


def test_a_cluster_that_is_not_serving_tells_phase_and_time() -> None:
    failure = failure_of(NotServing("Not yet", phase="loading_weights", retry_after_seconds=9))

    assert failure.headers() == {"Retry-After": "9"}
    assert failure.body()["error"]["phase"] == "loading_weights"
    assert failure.body()["error"]["retry_after_seconds"] == 9
    assert failure.message == "Not yet (phase: loading_weights)"


def test_trying_again_at_once_is_never_the_advice() -> None:
    failure = failure_of(NotServing("no", phase="election", retry_after_seconds=0))

    assert failure.headers()["Retry-After"] == "1"


def test_a_missing_key_names_the_scheme() -> None:
    assert failure_of(KeyMissing("no")).headers()["WWW-Authenticate"].startswith("Bearer")


def test_a_wrong_field_is_named() -> None:
    assert failure_of(BadRequest("no", param="top_p")).body()["error"]["param"] == "top_p"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (web.HTTPNotFound(), 404),
        (web.HTTPMethodNotAllowed("PUT", ["GET"]), 405),
        (web.HTTPRequestEntityTooLarge(10, 20), 413),
        (web.HTTPBadRequest(), 400),
        (web.HTTPInternalServerError(), 500),
    ],
)
def test_what_the_framework_refuses_has_the_same_shape(
    error: web.HTTPException, status: int
) -> None:
    assert failure_of_http(error).status == status
    assert failure_of_http(error).message


def test_an_event_is_one_data_line() -> None:
    assert sse.event(b'{"a":1}') == b'data: {"a":1}\n\n'


@given(st.text())
def test_an_event_is_read_back_as_it_was(text: str) -> None:
    """By the standard's rules: ``data:`` lines joined by line feeds."""
    block = sse.event(text.encode()).decode()

    assert block.endswith("\n\n")
    lines = [line.removeprefix("data: ") for line in block[:-2].split("\n")]
    assert "\n".join(lines) == text.replace("\r\n", "\n").replace("\r", "\n")


def test_a_comment_is_no_event() -> None:
    assert sse.KEEP_ALIVE.startswith(b":")
    assert sse.KEEP_ALIVE.endswith(b"\n\n")
