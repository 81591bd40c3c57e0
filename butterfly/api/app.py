"""The HTTP face of a node, put together."""

from collections.abc import Callable

from aiohttp import web

from butterfly.api.auth import KeyCheck, guard
from butterfly.api.limits import ApiLimits
from butterfly.api.middleware import (
    SILENT_CONNECTIONS,
    name_response,
    observed,
    shape_errors,
)
from butterfly.api.open_answers import OpenAnswers
from butterfly.api.openai import OpenAiRoutes
from butterfly.api.operations import OperationsRoutes
from butterfly.api.views import NodeView, NoObserver, Observer, Serving

OPEN_ANSWERS = web.AppKey("open_answers", OpenAnswers)

_DEFAULT_LIMITS = ApiLimits()


def make_app(
    node: NodeView,
    serving: Serving,
    metrics: Callable[[], bytes],
    *,
    api_keys: frozenset[str],
    limits: ApiLimits = _DEFAULT_LIMITS,
    observer: Observer | None = None,
) -> web.Application:
    """All routes with their guards. ``metrics`` renders Prometheus' text.

    Without keys everybody who reaches the port may ask. Serve it with ``ApiServer``, which adds
    what an application cannot have: limits on connections, and cancelling when a client goes.
    """
    watching = observer or NoObserver()
    answers = OpenAnswers(limits.requests_in_flight_max)
    app = web.Application(
        middlewares=[observed(watching), shape_errors, guard(KeyCheck(api_keys))],
        client_max_size=limits.body_bytes_max,
    )
    app[OPEN_ANSWERS] = answers
    app[SILENT_CONNECTIONS] = set()
    app.add_routes(OpenAiRoutes(serving, limits, watching, answers).routes())
    app.add_routes(OperationsRoutes(node, metrics, limits).routes())
    app.on_response_prepare.append(name_response)

    async def end_streams(_: web.Application) -> None:
        answers.interrupt_all()

    app.on_shutdown.append(end_streams)
    return app
