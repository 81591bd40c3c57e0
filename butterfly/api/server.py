"""Serve the application on a socket, with the limits that belong to connections.

aiohttp has no limit on how many connections there are, nor on how long a new one may take to
send its first request's headers; both are added here around its protocol. A client that goes
away cancels its handler, and with it the generation.
"""

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web

from butterfly.api.app import OPEN_ANSWERS
from butterfly.api.limits import ApiLimits
from butterfly.api.middleware import SILENT_CONNECTIONS
from butterfly_core.address import Address
from butterfly_core.errors import ConfigError

logger = logging.getLogger(__name__)

_HEADER_BYTES_MAX = 16 * 1024
_HEADERS_MAX = 100


class ApiServer:
    """One listening socket. ``start`` it, ``close`` it; both once."""

    def __init__(
        self, app: web.Application, bind: Address, *, limits: ApiLimits | None = None
    ) -> None:
        self._bind = bind
        self._limits = limits or ApiLimits()
        self._answers = app[OPEN_ANSWERS]
        self._silent = app[SILENT_CONNECTIONS]
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            keepalive_timeout=self._limits.idle_timeout_seconds,
            max_line_size=_HEADER_BYTES_MAX,
            max_field_size=_HEADER_BYTES_MAX,
            max_headers=_HEADERS_MAX,
            shutdown_timeout=2.0,
        )

    async def start(self) -> Address:
        """Listen. Returns the address with the port in use. Raises ConfigError."""
        await self._runner.setup()
        site = _GuardedSite(self._runner, self._bind, self._limits, self._silent)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"http_address {self._bind}: cannot listen there ({error.strerror or error}); "
                "stop what uses the port or choose another one"
            ) from None
        return Address(self._bind.host, site.port)

    async def close(self, *, grace_seconds: float = 0.0) -> None:
        """Refuse new requests, let open answers end for so long, then break them off."""
        self._answers.refuse_new()
        if grace_seconds > 0:
            await self._answers.wait_until_done(grace_seconds)
        self._answers.interrupt_all()
        await self._answers.wait_until_done(1.0)
        await self._runner.cleanup()


class _GuardedSite(web.BaseSite):
    """Listens like aiohttp's TCPSite, through a factory that counts and times connections."""

    def __init__(
        self,
        runner: web.BaseRunner,
        bind: Address,
        limits: ApiLimits,
        silent: set[web.RequestHandler],
    ) -> None:
        super().__init__(runner, backlog=512)
        self._bind = bind
        self._limits = limits
        self._silent = silent
        self.port = bind.port

    @property
    def name(self) -> str:
        return f"http://{self._bind}"

    async def start(self) -> None:
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("set the runner up before its sites")
        factory = _guarded_factory(server, self._limits, self._silent)
        self._server = listening = await asyncio.get_running_loop().create_server(
            factory, self._bind.host, self._bind.port, backlog=self._backlog
        )
        self.port = listening.sockets[0].getsockname()[1]


class _TurnedAway(asyncio.Protocol):
    """What a connection over the limit gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _guarded_factory(
    server: web.Server, limits: ApiLimits, silent: set[web.RequestHandler]
) -> Callable[[], asyncio.BaseProtocol]:
    loop = asyncio.get_running_loop()

    def close_if_silent(protocol: web.RequestHandler) -> None:
        """No whole request head by now: a slow attack, or a client that died."""
        if protocol in silent:
            silent.discard(protocol)
            if protocol.transport is not None:
                protocol.transport.abort()

    def make() -> asyncio.BaseProtocol:
        if len(server.connections) >= limits.connections_max:
            logger.warning("over %d connections; one turned away", limits.connections_max)
            return _TurnedAway()
        protocol = server()
        silent.add(protocol)
        loop.call_later(limits.header_timeout_seconds, close_if_silent, protocol)
        return protocol

    return make
