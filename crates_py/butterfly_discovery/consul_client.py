"""The only file that imports consul: py-consul's calls over a transport that keeps limits.

py-consul's own transport for asyncio is not used: it reads answers of any size, follows redirects
with the token in hand, has no limit of time for most calls, trusts the system's CAs beside the
given one, and lets the environment replace the token. Each question has a connection of its own,
so that a changed token or certificate counts at once and nothing has to be closed later.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from consul.base import Consul, Response
from consul.exceptions import ConsulException

from butterfly_core.errors import Unreachable
from butterfly_discovery.consul_settings import ConsulSettings, checked_token, tls_context

_TEXT_CHARACTERS_MAX = 200
_ODD_ANSWERS = (
    ConsulException,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RecursionError,
)
"""What py-consul and json raise for a body of another shape than Consul's."""


class ConsulRefused(Unreachable):
    """Consul answered with an error; ``status`` is that of HTTP."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


async def ask_consul(
    settings: ConsulSettings,
    call: Callable[[Any], Awaitable[Any]],
    *,
    needs: str,
    timeout_seconds: float | None = None,
) -> Any:
    """What a call of py-consul's API says, as ``lambda api: api.kv.get("a")``.

    ``needs`` is the ACL rule that the call asks for; a 403 names it. Raises Unreachable when there
    is no sound answer within ``timeout_seconds`` (the setting's, unless given).
    """
    limit = settings.timeout_seconds if timeout_seconds is None else timeout_seconds
    try:
        async with asyncio.timeout(limit):
            token, tls = await asyncio.to_thread(_prepare, settings)
            connector = aiohttp.TCPConnector(
                limit=1, force_close=True, ssl=True if tls is None else tls
            )
            async with aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(),
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as session:
                return await call(_Api(settings, _Http(settings, session, token, needs), token))
    except TimeoutError:
        raise Unreachable(
            f"{settings.where} gave no answer within {limit:g} s; look whether its agent runs"
        ) from None
    except (aiohttp.ClientError, ValueError) as error:  # the latter: a host no resolver takes
        said = _harmless(str(error) or type(error).__name__, token)
        raise Unreachable(f"{settings.where} cannot be asked: {said}") from None


def _prepare(settings: ConsulSettings) -> tuple[str, Any]:
    return checked_token(settings.token()), tls_context(settings)


class _Http:
    """What py-consul asks of a transport: get and put, with a callback that reads the answer."""

    def __init__(
        self, settings: ConsulSettings, session: aiohttp.ClientSession, token: str, needs: str
    ) -> None:
        self._settings = settings
        self._session = session
        self._token = token
        self._needs = needs

    async def get(
        self,
        callback: Callable[[Response], Any],
        path: str,
        params: Sequence[tuple[str, Any]] = (),
        headers: dict[str, str] | None = None,
    ) -> Any:
        return await self._ask("GET", callback, path, params, headers)

    async def put(
        self,
        callback: Callable[[Response], Any],
        path: str,
        params: Sequence[tuple[str, Any]] = (),
        data: str | bytes = "",
        headers: dict[str, str] | None = None,
    ) -> Any:
        return await self._ask("PUT", callback, path, params, headers, data)

    async def _ask(
        self,
        method: str,
        callback: Callable[[Response], Any],
        path: str,
        params: Sequence[tuple[str, Any]],
        headers: dict[str, str] | None,
        data: str | bytes | None = None,
    ) -> Any:
        settings = self._settings
        base = f"{settings.scheme}://{settings.host}:{settings.port}"
        url = f"{base}{quote(path, safe='/:')}?{urlencode(params)}"
        async with self._session.request(
            method,
            url,
            data=data,
            headers={**(headers or {}), "Accept-Encoding": "identity"},
            allow_redirects=False,
        ) as answer:
            body = await self._body(answer)
            where = f"{settings.where}, {method} {path}"
            if answer.status == 403:
                raise ConsulRefused(self._forbidden(where, body), 403)
            # 404 is how Consul says that a key is not there; py-consul knows.
            if answer.status not in (200, 404):
                said = _harmless(body, self._token)
                raise ConsulRefused(f"{where}: status {answer.status}, {said}", answer.status)
            try:
                return callback(Response(answer.status, answer.headers, body))
            except _ODD_ANSWERS:
                said = _harmless(body, self._token)
                raise Unreachable(
                    f"{where}: this is no answer of Consul: {said}; look what runs there"
                ) from None

    async def _body(self, answer: aiohttp.ClientResponse) -> str:
        read = bytearray()
        async for piece in answer.content.iter_any():
            read += piece
            if len(read) > self._settings.answer_bytes_max:
                raise Unreachable(
                    f"{self._settings.where} sends more than {self._settings.answer_bytes_max} "
                    "bytes; look what runs there"
                )
        return read.decode("utf-8", "replace")

    def _forbidden(self, where: str, body: str) -> str:
        if "ACL not found" in body:
            return f"{where}: Consul does not know the token; put a valid one into its file"
        token = "the token" if self._token else "no token is set, and the anonymous one"
        return (
            f"{where}: {_harmless(body, self._token)}; {token} lacks the rule: {self._needs} "
            "(the whole policy stands in butterfly_discovery's README)"
        )


class _Api(Consul):  # type: ignore[misc] # py-consul ships no types
    def __init__(self, settings: ConsulSettings, http: _Http, token: str) -> None:
        self._given = http
        super().__init__(
            host=settings.host, port=settings.port, scheme=settings.scheme, verify=True
        )
        self.dc = settings.datacenter or None
        self.token = token  # not the one of the environment, as py-consul prefers

    def http_connect(self, *_: object, **__: object) -> _Http:
        return self._given


def _harmless(text: str, token: str) -> str:
    """Text from outside for a message: short, on one line, without the token."""
    if token:
        text = text.replace(token, "(token)")
    shown = text if len(text) <= _TEXT_CHARACTERS_MAX else text[:_TEXT_CHARACTERS_MAX] + "…"
    return json.dumps(shown, ensure_ascii=True)
