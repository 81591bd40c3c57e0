"""What members tell their coordinator several times a second, beside the log.

A report is a sign of life and carries what only people and the planner need: progress, phase,
requests under way. The coordinator answers with the reports that changed since it answered that
member last, so any node can show the whole cluster. In a big cluster members report less often,
and an answer is bounded, so that what the coordinator takes in and gives out stays flat.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from butterfly.node.addresses import AddressBook
from butterfly.node.local import Local
from butterfly.node.news import NEWS_MAX, News
from butterfly_cluster.state import ClusterState
from butterfly_cluster.steady_clock import steady_seconds
from butterfly_core.errors import ButterflyError, InvalidValue, ProtocolViolation
from butterfly_core.ids import NodeId, parse_node_id, short
from butterfly_wire.pool import PeerPool

log = logging.getLogger(__name__)

REPORT_SECONDS: Final = 0.3
_REPORTS_PER_SECOND_MAX: Final = 66.7
_PERIOD_SECONDS_MAX: Final = 5.0
_TIMEOUT_SECONDS: Final = 1.5
_REPORTS_MAX: Final = 1000
_HEARD_KEPT_SECONDS: Final = 60.0
_PROBLEMS_MAX: Final = 8
_CHARACTERS_MAX: Final = 200
_LOST_MAX: Final = 16

_Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]
_Text = Annotated[str, Field(strict=True, max_length=_CHARACTERS_MAX)]


class Report(BaseModel):
    """What one member says of itself; what another version says beside that is left out."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    state: _Text
    phase: _Text
    epoch: _Count = 0
    progress_percent: Annotated[float, Field(strict=True, ge=0, le=100)] = 0.0
    bytes_done: _Count = 0
    bytes_total: _Count = 0
    bytes_from_source: _Count = 0
    bytes_from_cache: _Count = 0
    bytes_from_peers: _Count = 0
    bytes_per_second: _Count = 0
    offer_bytes_done: _Count = 0
    offer_bytes_total: _Count = 0
    eta_seconds: Annotated[float, Field(ge=0)] | None = None
    active_requests: _Count = 0
    lost: Annotated[tuple[_Text, ...], Field(max_length=_LOST_MAX)] = ()
    can_vote: Annotated[bool, Field(strict=True)] = True
    problems: Annotated[tuple[_Text, ...], Field(max_length=_PROBLEMS_MAX)] = ()

    def to_map(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def report_period(members: int) -> float:
    """Seconds between two reports of one member: longer when they are many."""
    return min(max(REPORT_SECONDS, members / _REPORTS_PER_SECOND_MAX), _PERIOD_SECONDS_MAX)


def parse_report(body: object) -> Report:
    """Raises ProtocolViolation."""
    try:
        return Report.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ProtocolViolation(f"not a report: {where} {first['msg']}"[:500]) from error


def parse_reports(reply: Mapping[str, Any]) -> dict[NodeId, Report]:
    """What a coordinator answers; odd entries are left out. Raises ProtocolViolation."""
    told = reply.get("reports")
    if not isinstance(told, Mapping):
        raise ProtocolViolation(f"not an answer to a report: reports is a {type(told).__name__}")
    reports = {}
    for key, body in islice(told.items(), _REPORTS_MAX):
        try:
            reports[parse_node_id(str(key))] = parse_report(body)
        except (ProtocolViolation, InvalidValue):
            continue  # a node that talks nonsense hides no other
    return reports


class Reports:
    """Sends this node's reports, keeps the others'."""

    def __init__(
        self,
        me: NodeId,
        local: Local,
        *,
        pool: PeerPool,
        addresses: AddressBook,
        leader: Callable[[], NodeId | None],
        active_requests: Callable[[], int],
        state: Callable[[], ClusterState],
        lost: Callable[[], frozenset[NodeId]] = frozenset,
        can_vote: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = steady_seconds,
    ) -> None:
        """``lost`` names nodes that this one heard and hears no more. ``clock`` in seconds."""
        self._me = me
        self._local = local
        self._pool = pool
        self._addresses = addresses
        self._leader = leader
        self._active_requests = active_requests
        self._state = state
        self._lost = lost
        self._can_vote = can_vote
        self._clock = clock
        self._heard: dict[NodeId, float] = {}
        self._complaint = ""
        self._news = News(run=f"{me}-{clock()}")
        self._followed: tuple[object, object] = ("", 0)

    @property
    def newest(self) -> Mapping[NodeId, Mapping[str, Any]]:
        """By live member, as ``Report`` has it."""
        return self._news.reports

    def own(self) -> Mapping[str, Any]:
        local, progress, load = self._local, self._local.progress, self._local.load
        offered = local.offer_progress
        return {
            "state": local.node.state.value,
            "phase": local.phase.value,
            "epoch": local.node.epoch,
            "progress_percent": load.percent,
            "bytes_done": progress.bytes_done if progress else 0,
            "bytes_total": progress.bytes_total if progress else 0,
            "bytes_from_source": local.bytes_from_source,
            "bytes_from_cache": local.bytes_from_cache,
            "bytes_from_peers": local.bytes_from_peers,
            "bytes_per_second": round(load.bytes_per_second or 0),
            "eta_seconds": local.eta_seconds,
            "offer_bytes_done": offered.bytes_done if offered else 0,
            "offer_bytes_total": offered.bytes_total if offered else 0,
            "active_requests": self._active_requests(),
            "lost": sorted(self._lost())[:_LOST_MAX],
            "can_vote": self._can_vote(),
            "problems": [
                problem.message[:_CHARACTERS_MAX]
                for problem in islice(local.problems.values(), _PROBLEMS_MAX)
            ],
        }

    async def run(self) -> None:
        """Report for ever."""
        while True:
            await self.report_once()
            await self._rest()

    async def _rest(self) -> None:
        """Until the next report is due, or there is something that should not wait for it."""
        told, rested = self._urgent(), 0.0
        period = report_period(len(self._state().members))
        while rested < period and self._urgent() == told:
            await asyncio.sleep(min(REPORT_SECONDS, period - rested))
            rested += REPORT_SECONDS

    def _urgent(self) -> tuple[object, ...]:
        return self._leader(), self._local.node.state, self._lost()

    async def report_once(self) -> None:
        """Tell the leader, learn of the others, forget who is gone."""
        leader, own = self._leader(), self.own()
        if leader is not None and leader != self._me:
            await self._tell(leader, own)
        self._news.note(self._me, own)
        self._forget()

    async def _tell(self, leader: NodeId, own: Mapping[str, Any]) -> None:
        """Take in what the leader answers; when it does not, the next one may get through."""
        run, version = self._followed
        try:
            reply = await self._pool.call(
                self._addresses.of(leader),
                "report",
                {**own, "run": run, "version": version},
                timeout_seconds=_TIMEOUT_SECONDS,
                expect=leader,
            )
            told = parse_reports(reply)
            for node, report in told.items():
                if node != self._me:
                    self._news.note(node, report.to_map())
            up_to_date = len(told) < NEWS_MAX
            missing = any(member.node_id not in self.newest for member in self._state().live)
            anew = up_to_date and missing  # it was dropped here while it seemed dead
            self._followed = ("", 0) if anew else (reply.get("run"), reply.get("version"))
        except ProtocolViolation as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                log.warning("node %s and this one do not understand: %s", short(leader), error)
        except ButterflyError:
            pass  # silence is what the coordinator counts

    def _forget(self) -> None:
        """Drop what dead members said last, and when strangers were heard long ago."""
        state, now = self._state(), self._clock()
        live = {member.node_id for member in state.live} | {self._me}
        self._news.keep(live)
        self._heard = {
            node: at
            for node, at in self._heard.items()
            if node in state.members or now - at < _HEARD_KEPT_SECONDS
        }

    async def handle(self, caller: NodeId, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """A member's report; answers with what changed since the answer it had before.

        Raises ProtocolViolation for a report that makes no sense; it is a sign of life too.
        """
        member = self._state().members.get(caller)
        if member is not None or len(self._heard) < _REPORTS_MAX:
            self._heard[caller] = self._clock()
        report = parse_report(body)
        if member is not None and member.alive:
            self._news.note(caller, report.to_map())
        self._news.note(self._me, self.own())
        return self._news.answer(body.get("run"), body.get("version"))

    def silent_seconds(self, since: float) -> dict[NodeId, float]:
        """For how long each member was not heard; nobody for longer than since ``since``."""
        now = self._clock()
        return {
            node: now - max(self._heard.get(node, 0.0), since) for node in self._state().members
        }

    @property
    def lost_by(self) -> dict[NodeId, frozenset[NodeId]]:
        """By other member: which nodes it says that it lost."""
        return {
            node: frozenset(report.get("lost", ()))
            for node, report in self.newest.items()
            if node != self._me
        }

    @property
    def mute(self) -> frozenset[NodeId]:
        """Whose disk failed, as last reported: they neither vote nor acknowledge."""
        silent = {node for node, report in self.newest.items() if not report.get("can_vote", True)}
        return frozenset(silent if self._can_vote() else silent | {self._me})

    @property
    def active_requests(self) -> int:
        """Requests under way on any live member, as last reported."""
        total = self._active_requests()
        for member in self._state().live:
            if member.node_id != self._me and member.node_id in self.newest:
                total += int(self.newest[member.node_id]["active_requests"])
        return total
