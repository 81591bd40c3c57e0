"""The application on a real loopback socket, with a fake node behind it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import aiohttp
import pytest

from butterfly.api.app import make_app
from butterfly.api.limits import ApiLimits
from butterfly.api.server import ApiServer
from butterfly_core.address import Address
from tests.support.api_fakes import FakeNode, FakeServing

Start = Callable[..., Awaitable[str]]


@pytest.fixture
def serving() -> FakeServing:
    return FakeServing()


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
async def start(serving: FakeServing, node: FakeNode) -> AsyncIterator[Start]:
    """Start a server; returns its base URL. Every server is closed at the end."""
    async with AsyncExitStack() as stack:

        async def start_one(
            *, api_keys: frozenset[str] = frozenset(), limits: ApiLimits | None = None
        ) -> str:
            chosen = limits or ApiLimits()
            app = make_app(node, serving, lambda: b"up 1\n", api_keys=api_keys, limits=chosen)
            server = ApiServer(app, Address("127.0.0.1", 0), limits=chosen)
            address = await server.start()
            stack.push_async_callback(server.close)
            return f"http://{address}"

        yield start_one


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        yield session
