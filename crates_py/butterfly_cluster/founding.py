"""From "I belong nowhere" to a cluster: asks the expected founders until there is one, or founds.

The rules are in ``bootstrap`` and ``promises``; here are the questions, the answers and the
order in which things reach the disk: a promise before it is spoken, the cluster's id before
the first vote.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping

from butterfly_cluster.bootstrap import decide, promises_needed
from butterfly_cluster.claims import Claim, Claims
from butterfly_cluster.former_cluster import refusal_of, way_back
from butterfly_cluster.founding_messages import Proposal, Verdict, WhoAmI
from butterfly_cluster.founding_questions import ASK_SECONDS, AskPeers, ask_all, ask_promise, told
from butterfly_cluster.founding_sight import (
    Answers,
    Decision,
    Formation,
    Found,
    FoundingSettings,
    Join,
    Sight,
    TakeClaim,
    Wait,
)
from butterfly_cluster.identity import DataDir
from butterfly_cluster.promises import consider, is_released
from butterfly_cluster.registry import Directory, Registry
from butterfly_core.errors import ButterflyError, ConfigError
from butterfly_core.ids import ClusterId, NodeId, short

__all__ = ["AskPeers", "Claim", "Claims", "Directory", "Formation", "Founding", "View"]

ROUND_SECONDS = 0.5
_log = logging.getLogger(__name__)


View = Callable[[], tuple[frozenset[NodeId], Mapping[NodeId, str]]]
"""Of a running node: who votes now, and the members' addresses."""


class Founding:
    """One node's way into a cluster, and its answers to others who are on theirs."""

    def __init__(
        self,
        data_dir: DataDir,
        settings: FoundingSettings,
        directory: Directory,
        *,
        remembered: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        """``remembered``: where members of its cluster were, for a node that lost its log.

        Raises ConfigError when the directory belongs to a cluster of another name.
        """
        identity = data_dir.identity
        if identity.cluster_name not in (None, settings.cluster_name):
            raise ConfigError(
                f"{data_dir.path} belongs to the cluster {identity.cluster_name!r}, the "
                f"configuration says {settings.cluster_name!r}; correct cluster_name, or start "
                "over with an empty data_dir"
            )
        self._data_dir, self._settings, self._directory = data_dir, settings, directory
        self._seeds: tuple[str, ...] = ()
        self._gathered_at: float | None = None
        self._registry = Registry(directory)
        self._remembered = remembered
        self.view: View | None = None
        self.state = Wait("the expected founders were not asked yet")

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

    @property
    def _former(self) -> ClusterId | None:
        return self._data_dir.identity.former_cluster

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
            generation=identity.generation,
            voters=tuple(sorted(voters)),
            members=members,
            seeds=self._seeds,
            quorum_size=settings.quorum_size,
            promised_to=None if promise is None else promise.candidate,
            promised_number=None if promise is None else promise.number,
            lost_log=self._former is not None,
        )

    def answer_promise(self, caller: NodeId, proposal: Proposal) -> Verdict:
        """Promise or refuse; a promise is on the disk when this returns. Raises StorageError.

        ``caller`` is the id that the caller's certificate proved.
        """
        if caller != proposal.candidate:
            return Verdict(False, "a node asks for promises for itself only")
        identity = self._data_dir.identity
        verdict = refusal_of(self._former) or consider(
            proposal,
            self.me,
            self._settings,
            seeds=self._seeds,
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
            if formation is None:
                formation = await self._round(ask)
            if formation is not None:
                return formation
            await asyncio.sleep(ROUND_SECONDS)

    async def _round(self, ask: AskPeers) -> Formation | None:
        held = self._data_dir.identity.promise
        try:
            async with asyncio.timeout(ASK_SECONDS):
                seeds = await self._directory.seeds()
            claim = await self._registry.read()
        except (ButterflyError, OSError) as error:
            self._wait(Wait(f"who is expected to found is not known: {told(error)}"))
            return None
        if seeds != self._seeds:
            self._seeds, self._gathered_at = seeds, None
        # a promise outlives the list it was given for: its candidate must still be heard
        places = {*seeds, *(self._remembered() if self._former else ())}
        heard = await ask_all(ask, {*places, *(held.seeds if held else ())})
        self._forget_what_was_dropped(held, claim, heard)
        answers = {
            address: answer
            for address, answer in heard.items()
            if address in places or (isinstance(answer, WhoAmI) and answer.cluster_id)
        }
        sight = Sight(
            seeds,
            answers,
            self._gathered_seconds(seeds, answers),
            claim,
            self._registry.silent_seconds(claim, answers),
        )
        return await self._act(ask, sight)

    def _forget_what_was_dropped(
        self, held: Proposal | None, claim: Claim | None, heard: Answers
    ) -> None:
        """``held`` was promised before anybody of ``heard`` was asked."""
        if held is None or held != self._data_dir.identity.promise:
            return
        if held.candidate != self.me:
            dropped = is_released(held, heard)
        else:
            dropped = claim is not None and claim.candidate != self.me
        if dropped:
            self._data_dir.remember_promise(None)

    async def _act(self, ask: AskPeers, sight: Sight) -> Formation | None:
        match self._decide(sight):
            case Join() as decision:
                return self._join(decision)
            case Wait() as decision:
                self._wait(decision)
            case TakeClaim(replacing):
                await self._take_claim(replacing)
            case Found(voters):
                return await self._found(ask, voters)
        return None

    def _decide(self, sight: Sight) -> Decision:
        if self._former is not None:
            return way_back(self._former, self._settings, sight)
        return decide(self.me, self._settings, sight)

    async def _take_claim(self, replacing: Claim | None) -> None:
        try:
            taken = await self._registry.write(Claim(self.me), replacing=replacing)
        except (ButterflyError, OSError) as error:
            self._wait(Wait(f"the claim in Consul cannot be written: {told(error)}"))
            return
        whose = "this node holds" if taken else "another node was faster and holds"
        self._wait(Wait(f"{whose} the claim in Consul and founds next"))

    async def keep_claim(self) -> ClusterId | None:
        """Once this node belongs to a cluster: see to it that the claim says so.

        Returns the cluster that the claim names instead, if it names another one. Raises
        WorldError or OSError when the registry cannot be reached; call it again later.
        """
        mine = self._data_dir.identity.cluster_id
        return None if mine is None else await self._registry.keep(self.me, mine)

    def _join(self, cluster: Join) -> Formation:
        self._data_dir.remember_cluster(
            cluster.cluster_id, self._settings.cluster_name, cluster.founders, cluster.generation
        )
        founders = cluster.founders
        role = "a voter" if self.me in founders else "a learner"
        _log.info("node %s belongs to cluster %s as %s", short(self.me), cluster.cluster_id, role)
        learner = self.me not in founders
        return Formation(cluster.cluster_id, frozenset(founders), learner, cluster.members)

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
        needed = promises_needed(self._settings, proposal.seeds)
        if len(granted) < needed:
            self._wait(Wait(f"{len(granted)} of {needed} promises needed: {'; '.join(refusals)}"))
            return None
        founders = tuple(sorted(voters))
        return self._join(Join(proposal.cluster_id, founders, {}, founders))

    def _own_proposal(self, voters: tuple[NodeId, ...]) -> Proposal | None:
        name, seeds = self._settings.cluster_name, self._seeds
        promise = self._data_dir.identity.promise
        if promise is not None and promise.candidate != self.me:
            return None
        if promise is not None and (promise.voters, promise.seeds) == (voters, seeds):
            return promise
        return Proposal(name, seeds, voters, self.me, secrets.token_hex(16))

    async def _collect(self, ask: AskPeers, proposal: Proposal) -> tuple[set[NodeId], list[str]]:
        granted, refusals = {self.me}, []
        for address, heard in (await ask_all(ask, proposal.seeds)).items():
            if isinstance(heard, str):
                refusals.append(f"{address}: {heard}")
            elif heard.node_id != self.me:
                verdict = await ask_promise(ask, address, proposal, heard.node_id)
                if verdict.granted:
                    granted.add(heard.node_id)
                else:
                    refusals.append(f"{address}: {verdict.reason}")
        return granted, refusals

    def _gathered_seconds(self, seeds: tuple[str, ...], answers: Answers) -> float:
        heard = {a.node_id for a in answers.values() if isinstance(a, WhoAmI) and not a.lost_log}
        now = asyncio.get_running_loop().time()
        if len(heard | {self.me}) < promises_needed(self._settings, seeds):
            self._gathered_at = None
            return 0.0
        if self._gathered_at is None:
            self._gathered_at = now
        return now - self._gathered_at

    def _wait(self, state: Wait) -> None:
        if state.reason != self.state.reason:
            _log.log(logging.WARNING if state.alarming else logging.INFO, "%s", state.reason)
        self.state = state
