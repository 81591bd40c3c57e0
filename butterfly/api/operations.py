"""What operators and their tools ask of a node: status, health, readiness, metrics, cache."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from aiohttp import web

from butterfly.api.views import NodeView

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format."""


@dataclass(frozen=True, slots=True)
class OperationsRoutes:
    """The handlers, with what they need."""

    node: NodeView
    render_metrics: Callable[[], bytes]

    def routes(self) -> list[web.RouteDef]:
        """What to add to the application."""
        return [
            web.get("/status", self.status),
            web.get("/health", self.health),
            web.get("/readiness", self.readiness),
            web.get("/metrics", self.metrics),
            web.post("/admin/clear-cache", self.clear_cache),
        ]

    async def status(self, request: web.Request) -> web.Response:
        """Everything this node knows of itself and the cluster.

        With ``?fresh=1`` not older than the request: 503 when that cannot be had.
        """
        if request.query.get("fresh") == "1":
            await self.node.catch_up()
        return web.json_response(dict(self.node.status()))

    async def health(self, request: web.Request) -> web.Response:
        """The process is alive; says nothing of the cluster."""
        return web.json_response({"status": "ok"})

    async def readiness(self, request: web.Request) -> web.Response:
        """200 when every check holds, else 503 and the first that does not."""
        checks = self.node.readiness()
        blocking = next((check.name for check in checks if not check.ok), None)
        document = {
            "ready": blocking is None,
            "blocking": blocking,
            "checks": [asdict(check) for check in checks],
        }
        return web.json_response(document, status=200 if blocking is None else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        """For Prometheus."""
        return web.Response(
            body=self.render_metrics(), headers={"Content-Type": METRICS_CONTENT_TYPE}
        )

    async def clear_cache(self, request: web.Request) -> web.Response:
        """Delete this node's weight cache."""
        return web.json_response({"freed_bytes": await self.node.clear_cache()})
