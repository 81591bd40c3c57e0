"""Candidates from a Consul service: this node's own entry is kept alive, the others are watched.

Reading follows Consul's rules for blocking queries
(https://developer.hashicorp.com/consul/api-docs/features/blocking): an index that went backwards
is forgotten, one of 0 counts as 1, and answers are paced. Consistency is Consul's ``default``: its
leader answers from what it knows; a leader that was just replaced may be seconds late.
"""

import asyncio
import ipaddress
import logging
import random
import re
import time
from typing import Any

from butterfly_core.address import Address
from butterfly_core.errors import ButterflyError, InvalidValue, Unreachable
from butterfly_discovery.book import ADDRESSES_PER_SOURCE_MAX
from butterfly_discovery.consul_client import ask_consul
from butterfly_discovery.consul_settings import ConsulSettings

CLUSTER_META = "butterfly_cluster"
_SERVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_RETRY_SECONDS_MIN = 0.5
_KEEP_ALIVES_PER_TTL = 3
_log = logging.getLogger(__name__)


class ConsulSource:
    """The passing instances of one service that belong to one cluster.

    ``me`` is where others dial this node; ``service_id`` tells its entry from all others.
    Raises InvalidValue when nobody could dial ``me``, or for an id that Consul could not take.
    """

    name = "consul"

    def __init__(
        self,
        settings: ConsulSettings,
        *,
        cluster_name: str,
        me: Address,
        service_id: str,
        rng: random.Random | None = None,
    ) -> None:
        if me.port == 0 or me.is_wildcard:
            raise InvalidValue(f"{me} cannot be dialled; give Consul an address that others reach")
        if not _SERVICE_ID.fullmatch(service_id):
            raise InvalidValue(f"Consul service id {service_id!r}: write letters, digits, . _ -")
        self._settings = settings
        self._cluster_name = cluster_name
        self._me = me
        self._id = service_id
        self._rng = rng or random.Random()
        self._index = 0
        self._answered_seconds = float("-inf")
        self._registered_with: str | None = None
        self._entered = False
        self._run_problem: str | None = None
        self._unseen = False

    @property
    def problem(self) -> str | None:
        """Why others may not find this node now; None when all is well."""
        if self._run_problem is None and self._unseen:
            rules = f'service "{self._settings.service}" {{ policy = "write" }}, node_prefix "" …'
            return (
                f"{self._settings.where}: this node is registered but not in the list of "
                f"{self._settings.service}; if that stays, the token lacks rights to read: {rules} "
                "(the whole policy stands in butterfly_discovery's README)"
            )
        return self._run_problem

    # The others.

    async def next(self) -> frozenset[Address]:
        """The passing instances: at once the first time and after an error, later on news.

        News may be none: Consul answers after ``wait_seconds`` anyway. Raises Unreachable.
        """
        if self._index:
            await self._pace()
        index, self._index = self._index, 0
        try:
            found = await self._question(index)
            answer = _passing(found[1], self._cluster_name)
            now = _index_of(found[0])
        except TypeError:
            raise Unreachable(f"{self._settings.where}: this is no list of instances") from None
        except asyncio.CancelledError:
            self._index = index
            raise
        self._index = 0 if now < index else now
        self._answered_seconds = time.monotonic()
        self._unseen = self._registered_with is not None and self._me not in answer
        return answer

    async def _question(self, index: int) -> Any:
        settings = self._settings
        # Consul adds up to a sixteenth of the wait by itself.
        held = settings.wait_seconds * 17 / 16 if index else 0.0
        return await ask_consul(
            settings,
            lambda api: api.health.service(
                settings.service,
                index=index,
                wait=f"{settings.wait_seconds:g}s",
                passing=True,
                tag=_tag(self._cluster_name),
            ),
            needs=f'service "{settings.service}" {{ policy = "read" }}',
            timeout_seconds=held + settings.timeout_seconds,
        )

    async def _pace(self) -> None:
        pause = self._settings.pause_seconds * self._rng.uniform(0.5, 1.5)
        await asyncio.sleep(max(0.0, self._answered_seconds + pause - time.monotonic()))

    # This node's own entry.

    async def run(self) -> None:
        """Keep this node in the list until cancelled, then take it out.

        It is written anew when the agent does not know it any more and when the token changed.
        """
        failures = 0
        try:
            while True:
                try:
                    await self._attend()
                except (ButterflyError, OSError) as error:
                    failures += 1
                    self._trouble(str(error))
                    await asyncio.sleep(self._retry_seconds(failures))
                else:
                    failures = 0
                    self._trouble(None)
                    share = self._settings.ttl_seconds / _KEEP_ALIVES_PER_TTL
                    await asyncio.sleep(share * self._rng.uniform(0.8, 1.0))
        finally:
            if self._entered:
                await self._leave()

    async def _attend(self) -> None:
        """Say that this node lives; whatever goes wrong, the next time it registers anew."""
        known, self._registered_with = self._registered_with, None
        token = await asyncio.to_thread(self._settings.token)
        if known is None or known != token or not await self._say_alive():
            self._entered = True
            await self._register()
        self._registered_with = token

    async def _say_alive(self) -> bool:
        try:
            said = await self._mine(lambda api: api.agent.check.ttl_pass(f"service:{self._id}"))
        except Unreachable as error:
            _log.info("Consul does not take the sign of life: %s; registering anew", error)
            return False
        return said is True  # False: the agent forgot it

    async def _register(self) -> None:
        settings = self._settings
        check = {
            "CheckID": f"service:{self._id}",
            "TTL": f"{settings.ttl_seconds:g}s",
            "Status": "passing",
            "DeregisterCriticalServiceAfter": f"{settings.forget_seconds:g}s",
        }
        done = await self._mine(
            lambda api: api.agent.service.register(
                settings.service,
                service_id=self._id,
                address=self._me.host,
                port=self._me.port,
                tags=[_tag(self._cluster_name)],
                meta={CLUSTER_META: self._cluster_name, "butterfly_address": str(self._me)},
                check=check,
                replace_existing_checks=True,
            )
        )
        if done is not True:
            raise Unreachable(f"{settings.where} did not take the entry of {self._id}")

    async def _leave(self) -> None:
        try:
            async with asyncio.timeout(self._settings.leave_seconds):
                await self._mine(lambda api: api.agent.service.deregister(self._id))
        except (ButterflyError, OSError) as error:
            _log.info(
                "Consul was not told that this node leaves: %s; it vanishes from the list within "
                "%g s",
                error,
                self._settings.ttl_seconds,
            )

    async def _mine(self, call: Any) -> Any:
        service = self._settings.service
        return await ask_consul(
            self._settings, call, needs=f'service "{service}" {{ policy = "write" }}'
        )

    def _trouble(self, problem: str | None) -> None:
        if problem is not None and self._run_problem is None:
            _log.warning("this node is not registered: %s; trying again", problem)
        elif problem is None and self._run_problem is not None:
            _log.info("%s: this node is registered again", self._settings.where)
        self._run_problem = problem

    def _retry_seconds(self, failures: int) -> float:
        longest = min(
            self._settings.retry_seconds_max, _RETRY_SECONDS_MIN * 2.0 ** min(failures, 16)
        )
        return longest * self._rng.uniform(0.5, 1.0)


def _tag(cluster_name: str) -> str:
    return f"cluster-{cluster_name}"


def _index_of(text: Any) -> int:
    """Consul's index; it must never be 0, which would make a question that does not wait."""
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]{1,20}", text):
        raise TypeError
    return max(1, int(text))


def _passing(entries: Any, cluster_name: str) -> frozenset[Address]:
    """The addresses of one cluster's instances; one that cannot be dialled is left out.

    Raises TypeError when this is no list of instances.
    """
    if not isinstance(entries, list):
        raise TypeError
    found = set()
    for entry in entries:
        try:
            service = entry["Service"]
            if service["Meta"][CLUSTER_META] != cluster_name:
                continue
            host = service["Address"] or entry["Node"]["Address"]
            found.add(_address(host, service["Port"]))
        except (TypeError, KeyError, ValueError):
            continue
    return frozenset(sorted(found)[:ADDRESSES_PER_SOURCE_MAX])


def _address(host: Any, port: Any) -> Address:
    if not isinstance(host, str) or not isinstance(port, int) or not 0 < port <= 65535:
        raise TypeError
    if ":" in host:
        ipaddress.IPv6Address(host)
    elif not _HOST_NAME.fullmatch(host):
        raise TypeError
    address = Address(host, port)
    if address.is_wildcard:
        raise TypeError
    return address
