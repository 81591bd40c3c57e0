"""Around every request: its id, its line in the log, its count, and errors in OpenAI's shape."""

import logging
import re
import time
import uuid

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from butterfly.api.errors import InternalError, failure_of, failure_of_http
from butterfly.api.views import Observer
from butterfly_core.errors import ButterflyError

REQUEST_ID = web.RequestKey("request_id", str)
SILENT_CONNECTIONS = web.AppKey("silent_connections", set[web.RequestHandler])
"""Connections that have not brought a request yet; the server closes those that stay so."""
_CLIENT_CLOSED = 499
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("butterfly.api.access")


def accept_request_id(given: str | None) -> str:
    """The client's own id when it is harmless, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return f"req-{uuid.uuid4().hex}"


async def name_response(request: web.Request, response: web.StreamResponse) -> None:
    """Signal before headers are sent: streams need the id too."""
    if (request_id := request.get(REQUEST_ID)) is not None:
        response.headers["X-Request-Id"] = request_id
    response.headers["Server"] = "butterfly"
    response.headers["X-Content-Type-Options"] = "nosniff"


def observed(observer: Observer) -> Middleware:
    """The outermost: one line of access log (no bodies, no query, no keys) and one count."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request.app[SILENT_CONNECTIONS].discard(request.protocol)
        request[REQUEST_ID] = accept_request_id(request.headers.get("X-Request-Id"))
        started = time.monotonic()
        status = _CLIENT_CLOSED
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            seconds = time.monotonic() - started
            route = _route(request)
            # Any word may be sent as a method, and label values must not be endless.
            method = request.method if request.method in hdrs.METH_ALL else "OTHER"
            observer.request_ended(route, method, status, seconds)
            access_logger.info(
                "%s %s %d %.3f s from=%s id=%s",
                method,
                route,
                status,
                seconds,
                request.remote,
                request[REQUEST_ID],
            )

    return middleware


def _route(request: web.Request) -> str:
    """The pattern, not the path: paths are endless, and label values must not be."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


@web.middleware
async def shape_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever a handler raises becomes OpenAI's error body."""
    try:
        return await handler(request)
    except ButterflyError as error:
        return failure_of(error).response()
    except web.HTTPException as error:
        response = failure_of_http(error).response()
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except ConnectionError:
        raise
    except Exception:
        logger.exception("request %s failed", request[REQUEST_ID])
        return failure_of(InternalError()).response()
