"""What operators and their tools ask of a node: status, readiness, metrics, cache, model."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from butterfly.api.body import read_limited
from butterfly.api.errors import BadRequest
from butterfly.api.limits import ApiLimits
from butterfly.api.views import NodeView

PLACE_KEYS = ("source_type", "source_path", "endpoint_url", "region", "name")
"""As in the ``[model]`` section; the first two are required."""
METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Prometheus' text format."""


@dataclass(frozen=True, slots=True)
class OperationsRoutes:
    """The handlers, with what they need."""

    node: NodeView
    render_metrics: Callable[[], bytes]
    limits: ApiLimits

    def routes(self) -> list[web.RouteDef]:
        """What to add to the application."""
        return [
            web.get("/status", self.status),
            web.get("/health", self.health),
            web.get("/readiness", self.readiness),
            web.get("/metrics", self.metrics),
            web.post("/admin/clear-cache", self.clear_cache),
            web.post("/admin/repin", self.repin),
            web.post("/admin/load", self.load),
            web.post("/admin/call-off-load", self.call_off_load),
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
        """Delete this node's weight cache, or what was not used for ``older_than_seconds``; with
        ``dry_run`` only say what would go."""
        wanted = await self._body(request, {"older_than_seconds": (int, float), "dry_run": (bool,)})
        age = wanted.get("older_than_seconds", 0.0)
        if not 0 <= age < math.inf:
            raise BadRequest("older_than_seconds must be 0 or more", param="older_than_seconds")
        dry_run = wanted.get("dry_run", False)
        cleared = await self.node.clear_cache(older_than_seconds=float(age), dry_run=dry_run)
        return web.json_response({**asdict(cleared), "dry_run": dry_run})

    async def repin(self, request: web.Request) -> web.Response:
        """Give up the root that ``root`` names, as this cluster has pinned it."""
        root = (await self._body(request, {"root": (str,)})).get("root")
        if root is None:
            raise BadRequest("root must name the pinned root that is given up", param="root")
        await self.node.repin(root)
        return web.json_response({"given_up": root})

    async def load(self, request: web.Request) -> web.Response:
        """Offer another model, or another revision of this one; ``/status`` tells its fate."""
        place = await self._body(request, dict.fromkeys(PLACE_KEYS, (str,)))
        for key in PLACE_KEYS[:2]:
            if not place.get(key):
                raise BadRequest(f"{key} must say where the model lies", param=key)
        return web.json_response({"offer": await self.node.load_model(place)})

    async def call_off_load(self, request: web.Request) -> web.Response:
        """Withdraw the model that is offered."""
        await self._body(request, {})
        return web.json_response({"offer": await self.node.call_off_load()})

    async def _body(
        self, request: web.Request, kinds: Mapping[str, tuple[type, ...]]
    ) -> Mapping[str, Any]:
        """A JSON object with some of these keys; an empty body is an empty one."""
        raw = await read_limited(request, self.limits)
        try:
            body = json.loads(raw) if raw.strip() else {}
        except (ValueError, RecursionError):
            raise BadRequest("the body is not JSON") from None
        if not isinstance(body, dict):
            raise BadRequest("the body must be a JSON object")
        for key, value in body.items():
            if key not in kinds:
                raise BadRequest(f"unknown key; known are {', '.join(kinds)}", param=key[:64])
            if type(value) not in kinds[key]:
                words = " or ".join(kind.__name__ for kind in kinds[key])
                raise BadRequest(f"{key} must be {words}", param=key)
        return body
