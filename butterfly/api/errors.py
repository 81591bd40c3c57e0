"""From errors to HTTP: whose fault it was becomes a status, and OpenAI's error body.

Every body has the shape ``{"error": {"message", "type", "param", "code"}}``; where the cluster
is not serving it also carries ``phase`` and ``retry_after_seconds``.
"""

from dataclasses import dataclass
from typing import Any

from aiohttp import web

from butterfly_core.errors import (
    ButterflyError,
    EngineLost,
    NotServing,
    RequestError,
    Unreachable,
    UserError,
)

RETRY_AFTER_LOST_SECONDS = 2
"""After a lost engine the cluster plans anew; asking again at once would only hear 503."""


class BadRequest(RequestError):
    """A request that cannot be answered as asked; names the parameter."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ModelNotFound(RequestError):
    """The request names a model that is not served here."""


class BodyTooLarge(RequestError):
    """The request body is over the limit."""


class BodyTooSlow(RequestError):
    """The request body did not arrive in time."""


class KeyMissing(UserError):
    """No API key, or one that is not known."""


class ForeignOrigin(UserError):
    """A browser page of another site sent this."""


class TooManyRequests(ButterflyError):
    """More requests at once than this node takes."""


class InternalError(ButterflyError):
    """Something failed that should not; the story is in the log, not in the answer."""

    def __init__(self) -> None:
        super().__init__("Internal error; the node's log has the story.")


@dataclass(frozen=True, slots=True)
class Failure:
    """One error as HTTP tells it."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    phase: str | None = None
    retry_after_seconds: int | None = None

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if self.phase is not None:
            error["phase"] = self.phase
        if self.retry_after_seconds is not None:
            error["retry_after_seconds"] = self.retry_after_seconds
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """What beside the body tells a client what to do."""
        headers = {}
        if self.retry_after_seconds is not None:
            headers["Retry-After"] = str(self.retry_after_seconds)
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="butterfly"'
        return headers

    def response(self) -> web.Response:
        """The whole answer."""
        return web.json_response(self.body(), status=self.status, headers=self.headers())


def failure_of(error: ButterflyError) -> Failure:
    """What a client is told of an error."""
    if isinstance(error, RequestError):
        return _request_failure(error)
    message = str(error)
    match error:
        case KeyMissing():
            return Failure(401, message, "invalid_request_error", "invalid_api_key")
        case ForeignOrigin():
            return Failure(403, message, "invalid_request_error", "foreign_origin")
        case TooManyRequests():
            return Failure(429, message, "rate_limit_error", "too_many_requests", None, None, 1)
        case NotServing(phase=phase, retry_after_seconds=seconds):
            told = f"{message} (phase: {phase})" if phase not in message else message
            seconds = max(1, seconds)
            return Failure(503, told, "service_unavailable", "not_serving", None, phase, seconds)
        case EngineLost() | Unreachable():
            code = "engine_lost" if isinstance(error, EngineLost) else "unreachable"
            seconds = RETRY_AFTER_LOST_SECONDS
            return Failure(503, message, "service_unavailable", code, None, None, seconds)
        case _:
            return Failure(500, message, "server_error", "internal")


def _request_failure(error: RequestError) -> Failure:
    message, kind = str(error), "invalid_request_error"
    match error:
        case BadRequest(param=param, code=code):
            return Failure(400, message, kind, code, param)
        case ModelNotFound():
            return Failure(404, message, kind, "model_not_found", "model")
        case BodyTooLarge():
            return Failure(413, message, kind, "request_too_large")
        case BodyTooSlow():
            return Failure(408, message, kind, "request_timeout")
        case _:
            return Failure(400, message, kind)


def failure_of_http(error: web.HTTPException) -> Failure:
    """What aiohttp itself refuses: no such path, wrong method, too large."""
    match error.status:
        case 404:
            message, code = "No such path; see /v1/models, /status, /health.", "not_found"
        case 405:
            message, code = "This path does not know this method.", "method_not_allowed"
        case 413:
            message, code = error.text or "The request body is too large.", "request_too_large"
        case _:
            message, code = error.reason, "http_error"
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return Failure(error.status, message, kind, code)
