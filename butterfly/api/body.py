"""Read a request's body within its limits of size and time."""

import asyncio

from aiohttp import web

from butterfly.api.errors import BodyTooLarge, BodyTooSlow
from butterfly.api.limits import ApiLimits


async def read_limited(request: web.Request, limits: ApiLimits) -> bytes:
    """The body. Raises BodyTooLarge, BodyTooSlow."""
    if (request.content_length or 0) > limits.body_bytes_max:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_timeout_seconds):
            return await request.read()
    except TimeoutError:
        raise BodyTooSlow(
            f"The request body did not arrive within {limits.body_timeout_seconds:g} s"
        ) from None
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limits) from None


def _too_large(limits: ApiLimits) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is over the limit of {limits.body_bytes_max} bytes")
