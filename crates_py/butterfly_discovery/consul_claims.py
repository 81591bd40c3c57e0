"""The claim to found a cluster, as one key of Consul's store: created once, replaced by version.

The key is ``butterfly/CLUSTER/founding``. Consul's check-and-set decides between candidates
(https://developer.hashicorp.com/consul/api-docs/kv#cas), and reads are ``consistent``: the leader
asks its followers first. Consul's sessions are not used: whether the holder lives is told by the
service list that everybody watches anyway, and what keeps a take-over safe is the founders'
promises, not a lock.
"""

import json
from typing import Any

from butterfly_core.errors import InvalidValue, Unreachable
from butterfly_discovery.claims import Claim, ClaimUnreadable
from butterfly_discovery.consul_client import ask_consul
from butterfly_discovery.consul_settings import ConsulSettings

_VALUE_BYTES_MAX = 1024
_FIELDS = {"cluster_name", "candidate", "cluster_id"}


class ConsulClaims:
    """Reads and writes the claim of one cluster name."""

    def __init__(self, settings: ConsulSettings, *, cluster_name: str) -> None:
        self._settings = settings
        self._cluster_name = cluster_name
        self.key = f"butterfly/{cluster_name}/founding"
        self._needs = f'key "{self.key}" {{ policy = "write" }}'

    async def read(self) -> Claim | None:
        """The claim now, None when nobody made one.

        Raises Unreachable when Consul does not answer, and ClaimUnreadable when what lies there
        is no claim of this cluster.
        """
        _, entry = await ask_consul(
            self._settings,
            lambda api: api.kv.get(self.key, consistency="consistent"),
            needs=self._needs,
        )
        return None if entry is None else self._claim_of(entry)

    async def write(self, claim: Claim, *, replacing: Claim | None) -> bool:
        """True when the claim stands as given; False when somebody else was faster.

        With ``replacing`` None it is written only where there is none yet, otherwise only over
        that very version. True as well when an earlier try of ours came through and only its
        answer was lost. Raises as ``read``; then it is not known whether it was written.
        """
        value = {
            "cluster_name": self._cluster_name,
            "candidate": claim.candidate,
            "cluster_id": claim.cluster_id,
        }
        version = 0 if replacing is None else replacing.version
        if replacing is not None and version == 0:
            raise InvalidValue("a claim to replace is one that was read; this one has no version")
        written = await ask_consul(
            self._settings,
            lambda api: api.kv.put(self.key, json.dumps(value), cas=version),
            needs=self._needs,
        )
        if written is True:
            return True
        if written is not False:
            raise Unreachable(f"{self._settings.where}: writing {self.key} got no yes or no")
        found = await self.read()
        mine = (claim.candidate, claim.cluster_id)
        return found is not None and (found.candidate, found.cluster_id) == mine

    def _claim_of(self, entry: Any) -> Claim:
        try:
            version, raw = entry["ModifyIndex"], entry["Value"]
        except (TypeError, KeyError):
            raise Unreachable(f"{self._settings.where}: no entry of {self.key}") from None
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise Unreachable(f"{self._settings.where}: {self.key} has no version")
        if not isinstance(raw, bytes) or len(raw) > _VALUE_BYTES_MAX:
            raise self._unreadable("it is empty or too long")
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError):
            raise self._unreadable("it is not JSON") from None
        if not isinstance(value, dict) or set(value) != _FIELDS:
            raise self._unreadable(f"it has not exactly the fields {', '.join(sorted(_FIELDS))}")
        if value["cluster_name"] != self._cluster_name:
            raise self._unreadable("it names another cluster")
        texts = (value["candidate"], value["cluster_id"])
        if not isinstance(texts[0], str) or not isinstance(texts[1], str | None):
            raise self._unreadable("its candidate or cluster id is no text")
        try:
            return Claim(texts[0], texts[1], version)
        except InvalidValue as error:
            raise self._unreadable(str(error)) from None

    def _unreadable(self, why: str) -> ClaimUnreadable:
        return ClaimUnreadable(
            f"{self._settings.where}: the key {self.key} holds no claim to found "
            f"{self._cluster_name}: {why}. See what wrote it; when no cluster of this name exists, "
            f"remove it: consul kv delete {self.key}"
        )
