"""From "I belong nowhere" to a cluster: asks the seeds until there is one, or founds it.

The rules are in ``bootstrap``; here are the questions, the answers and the order in which
things reach the disk: a promise before it is spoken, the cluster's id before the first vote.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from butterfly_cluster.bootstrap import (
    Answers,
    Found,
    FoundingSettings,
    Join,
    Wait,
    consider,
    decide,
    is_released,
    majority_of,
)
from butterfly_cluster.founding_messages import Proposal, Verdict, WhoAmI
from butterfly_cluster.identity import DataDir
from butterfly_core.errors import ButterflyError, ConfigError
from butterfly_core.ids import ClusterId, NodeId, short

ROUND_SECONDS = 0.5
ASK_SECONDS = 2.0
_log = logging.getLogger(__name__)


class AskPeers(Protocol):
    """How the application asks another node; raises ButterflyError or OSError."""

    async def whoami(self, address: str, /) -> WhoAmI: ...
    async def promise(self, address: str, proposal: Proposal, /) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class Formation:
    """The cluster this node belongs to.

    ``voters`` is its first configuration, for ``RaftNode(voters=...)``; ``members`` is where
    nodes were said to be when this node joined (empty after a restart: ask the state).
    """

    cluster_id: ClusterId
    voters: frozenset[NodeId]
    learner: bool
    members: Mapping[NodeId, str]


View = Callable[[], tuple[frozenset[NodeId], Mapping[NodeId, str]]]
"""Of a running node: who votes now, and the members' addresses."""


class Founding:
    """One node's way into a cluster, and its answers to others who are on theirs."""

    def __init__(self, data_dir: DataDir, settings: FoundingSettings) -> None:
        """Raises ConfigError when the directory belongs to a cluster of another name."""
        identity = data_dir.identity
        if identity.cluster_name not in (None, settings.cluster_name):
            raise ConfigError(
                f"{data_dir.path} belongs to the cluster {identity.cluster_name!r}, the "
                f"configuration says {settings.cluster_name!r}; correct cluster_name, or start "
                "over with an empty data_dir"
            )
        self._data_dir, self._settings = data_dir, settings
        self._majority_seen_at: float | None = None
        self.view: View | None = None
        self.state = Wait("the seeds were not asked yet")

    @property
    def me(self) -> NodeId:
        """This node's id."""
        return self._data_dir.identity.node_id

    def formation(self) -> Formation | None:
        """The cluster this node belongs to, by its disk; None when it belongs nowhere yet."""
        identity = self._data_dir.identity
        if identity.cluster_id is None:
            return None
        founders = frozenset(identity.founders)
        return Formation(identity.cluster_id, founders, self.me not in founders, {})

    # Answers to others.

    def answer_whoami(self) -> WhoAmI:
        """Who this node is, for anybody who asks."""
        identity, settings = self._data_dir.identity, self._settings
        voters, members = self.view() if self.view else (frozenset(identity.founders), {})
        promise = identity.promise
        return WhoAmI(
            node_id=self.me,
            cluster_name=settings.cluster_name,
            address=settings.address,
            cluster_id=identity.cluster_id,
            founders=identity.founders,
            voters=tuple(sorted(voters)),
            members=members,
            seeds=settings.seeds,
            promised_to=None if promise is None else promise.candidate,
            promised_number=None if promise is None else promise.number,
        )

    def answer_promise(self, caller: NodeId, proposal: Proposal) -> Verdict:
        """Promise or refuse; a promise is on the disk when this returns. Raises StorageError.

        ``caller`` is the id that the caller's certificate proved.
        """
        if caller != proposal.candidate:
            return Verdict(False, "a node asks for promises for itself only")
        identity = self._data_dir.identity
        verdict = consider(
            proposal,
            self.me,
            self._settings,
            cluster_id=identity.cluster_id,
            promise=identity.promise,
        )
        if verdict.granted and identity.promise != proposal:
            self._data_dir.remember_promise(proposal)
        return verdict

    # The way in.

    async def form_or_join(self, ask: AskPeers) -> Formation:
        """Return once this node belongs to a cluster; ``state.reason`` says what it waits for.

        Raises ConfigError when waiting can never help, StorageError when the disk fails.
        """
        while True:
            formation = self.formation()
            if formation is not None:
                return formation
            answers = await self._ask_all(ask)
            formation = await self._act(ask, answers)
            if formation is not None:
                return formation
            await asyncio.sleep(ROUND_SECONDS)

    async def _act(self, ask: AskPeers, answers: Answers) -> Formation | None:
        promise = self._data_dir.identity.promise
        if promise is not None and promise.candidate != self.me and is_released(promise, answers):
            self._data_dir.remember_promise(None)
        seen = self._majority_seen_seconds(answers)
        decision = decide(self.me, self._settings, answers, seen)
        match decision:
            case Join():
                return self._belong(decision.cluster_id, decision.founders, decision.members)
            case Wait():
                self._wait(decision)
                return None
            case Found():
                return await self._found(ask, decision.voters)

    def _belong(
        self, cluster_id: ClusterId, founders: tuple[NodeId, ...], members: Mapping[NodeId, str]
    ) -> Formation:
        self._data_dir.remember_cluster(cluster_id, self._settings.cluster_name, founders)
        role = "a voter" if self.me in founders else "a learner"
        _log.info("node %s belongs to cluster %s as %s", short(self.me), cluster_id, role)
        return Formation(cluster_id, frozenset(founders), self.me not in founders, members)

    async def _found(self, ask: AskPeers, voters: tuple[NodeId, ...]) -> Formation | None:
        proposal = self._own_proposal(voters)
        if proposal is None:
            promise = self._data_dir.identity.promise
            self._wait(
                Wait(
                    f"this node promised to {short(promise.candidate) if promise else 'another'}, "
                    "which has not founded yet; if that node is gone for good, start this one "
                    "with an empty data_dir"
                )
            )
            return None
        self._data_dir.remember_promise(proposal)
        granted, refusals = await self._collect(ask, proposal)
        if self._data_dir.identity.promise != proposal:
            self._wait(Wait("a node with a smaller id founds the cluster; waiting for it"))
            return None
        needed = majority_of(self._settings) if self._settings.seeds else 1
        if len(granted) < needed:
            self._wait(Wait(f"{len(granted)} of {needed} promises needed: {'; '.join(refusals)}"))
            return None
        return self._belong(proposal.cluster_id, tuple(sorted(voters)), {})

    def _own_proposal(self, voters: tuple[NodeId, ...]) -> Proposal | None:
        settings, promise = self._settings, self._data_dir.identity.promise
        if promise is not None and promise.candidate != self.me:
            return None
        if promise is not None and (promise.voters, promise.seeds) == (voters, settings.seeds):
            return promise
        return Proposal(
            settings.cluster_name, settings.seeds, voters, self.me, secrets.token_hex(16)
        )

    async def _collect(self, ask: AskPeers, proposal: Proposal) -> tuple[set[NodeId], list[str]]:
        granted, refusals = {self.me}, []
        for address, heard in (await self._ask_all(ask)).items():
            if isinstance(heard, str):
                refusals.append(f"{address}: {heard}")
            elif heard.node_id != self.me:
                verdict = await self._ask_promise(ask, address, proposal)
                if verdict.granted:
                    granted.add(heard.node_id)
                else:
                    refusals.append(f"{address}: {verdict.reason}")
        return granted, refusals

    async def _ask_promise(self, ask: AskPeers, address: str, proposal: Proposal) -> Verdict:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await ask.promise(address, proposal)
        except (ButterflyError, OSError) as error:
            return Verdict(False, str(error) or type(error).__name__)

    async def _ask_all(self, ask: AskPeers) -> Answers:
        async def one(address: str) -> WhoAmI | str:
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    return replace(await ask.whoami(address), address=address)
            except (ButterflyError, OSError) as error:
                return str(error) or type(error).__name__

        async with asyncio.TaskGroup() as tasks:
            asked = {seed: tasks.create_task(one(seed)) for seed in self._settings.seeds}
        return {seed: task.result() for seed, task in asked.items()}

    def _majority_seen_seconds(self, answers: Answers) -> float:
        heard = {answer.node_id for answer in answers.values() if isinstance(answer, WhoAmI)}
        now = asyncio.get_running_loop().time()
        if len(heard | {self.me}) < majority_of(self._settings):
            self._majority_seen_at = None
            return 0.0
        if self._majority_seen_at is None:
            self._majority_seen_at = now
        return now - self._majority_seen_at

    def _wait(self, state: Wait) -> None:
        if state.reason != self.state.reason:
            _log.log(logging.WARNING if state.alarming else logging.INFO, "%s", state.reason)
        self.state = state
