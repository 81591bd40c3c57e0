"""From host names to IP addresses, in a few threads of its own.

A resolver that hangs takes its threads for seconds. The default pool of asyncio must not lose its
threads to it: everything else that blocks runs there. Each name is asked for once at a time, and a
name that was found before is dialled where it was, when its resolver does not answer.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from butterfly_core.errors import Unreachable

THREADS_MAX = 4
NAMES_MAX = 1024
"""Asked for at once, and remembered."""
PATIENCE_SECONDS = 0.2
"""How long a name whose address is known waits for a newer one."""

Found = tuple[int, int, int, str, Any]
"""Family, type, protocol, name and address of a socket, as ``getaddrinfo`` has them."""


def _ask_system(host: str) -> list[Found]:
    return list(socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM))


class Names:
    """Looks up names for every loop of a process."""

    def __init__(
        self,
        ask: Callable[[str], list[Found]] = _ask_system,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._ask = ask
        self._patience_seconds = patience_seconds
        self._threads = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="names")
        self._lock = threading.Lock()
        self._asked: dict[str, Future[list[Found]]] = {}
        self._known: dict[str, list[Found]] = {}

    async def look_up(self, host: str, port: int) -> list[Found]:
        """Where to dial, best first. Raises OSError, Unreachable, and ValueError for no name."""
        return [
            (family, kind, protocol, name, (where[0], port, *where[2:]))
            for family, kind, protocol, name, where in _number(host) or await self._named(host)
        ]

    async def _named(self, host: str) -> list[Found]:
        known = self._known.get(host)
        try:
            async with asyncio.timeout(None if known is None else self._patience_seconds):
                # One who gives up must not end it for the others.
                return await asyncio.shield(asyncio.wrap_future(self._asking(host)))
        except (TimeoutError, socket.gaierror) as error:
            answered = isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN
            if known is None or answered:
                raise
            return known

    def _asking(self, host: str) -> Future[list[Found]]:
        with self._lock:
            if (asked := self._asked.get(host)) is not None:
                return asked
            if len(self._asked) >= NAMES_MAX:
                raise Unreachable(
                    f"{host}: {NAMES_MAX} names wait for the resolver of this machine"
                )
            asked = self._asked[host] = self._threads.submit(self._ask, host)
        asked.add_done_callback(lambda done: self._settle(host, done))
        return asked

    def _settle(self, host: str, done: Future[list[Found]]) -> None:
        with self._lock:
            del self._asked[host]
            if done.cancelled() or done.exception() is not None:
                return
            self._known.pop(host, None)
            self._known[host] = done.result()
            while len(self._known) > NAMES_MAX:
                del self._known[next(iter(self._known))]


def _number(host: str) -> list[Found]:
    """An IP address as it is, without asking anybody; empty for a name. Raises ValueError."""
    flags = socket.AI_NUMERICHOST
    try:
        return list(socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=flags))
    except socket.gaierror:
        return []


NAMES = Names()
"""Those of this process."""


async def connect(host: str, port: int, names: Names = NAMES) -> socket.socket:
    """A socket, not blocking, connected to the first address that takes it.

    Raises as ``look_up`` does; ConnectionRefusedError only when all addresses refuse.
    """
    failures: list[OSError] = []
    for family, kind, protocol, _, where in await names.look_up(host, port):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, where)
        except OSError as error:
            sock.close()
            failures.append(error)
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    if len({type(failure) for failure in failures}) == 1:
        raise failures[0]
    raise OSError("; ".join(map(str, failures)) or f"{host} has no address")
