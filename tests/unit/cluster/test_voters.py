"""The voters become an odd number of the best, one by one, and never lose their live majority."""

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from butterfly_cluster.observations import Demote, HandOver, Observations, Policy, Promote
from butterfly_cluster.state import ClusterState, Member
from butterfly_cluster.voters import VoterDuty, voter_duty
from butterfly_core.address import Address
from butterfly_core.ids import NodeId
from tests.support.clusters import node

POLICY = Policy()
LONG, SHORT = 31.0, 5.0


@dataclass(frozen=True)
class Machine:
    """One node of the world; ``silent`` counts from its death."""

    number: int
    role: str = "worker"
    zone: str = ""
    silent: float = 0.0
    mute: bool = False
    departed: bool = False
    registered: bool = True
    caught_up: bool = True

    @property
    def id(self) -> NodeId:
        return node(self.number)

    @property
    def votes_well(self) -> bool:
        return not (self.silent or self.mute or self.departed)

    def member(self) -> Member:
        here = Address("127.0.0.1", 7000)
        role: Any = self.role
        return Member(
            self.id,
            here,
            here,
            role,
            "0",
            alive=not self.silent,
            joined_index=self.number,
            zone=self.zone,
        )


@dataclass
class World:
    machines: list[Machine]
    voters: set[int]
    me: int = 1
    calm: float = 60.0
    policy: Policy = field(default=POLICY)

    def duty(self) -> VoterDuty | None:
        there = [machine for machine in self.machines if machine.registered]
        state = ClusterState(
            members={m.id: m.member() for m in there if not m.departed},
            departed=tuple(m.id for m in there if m.departed),
        )
        seen = Observations(
            silent_seconds={m.id: m.silent for m in self.machines},
            settled_seconds=self.calm,
            gathered_seconds=self.calm,
            voters=frozenset(node(number) for number in self.voters),
            me=node(self.me),
            term=1,
            caught_up=frozenset(m.id for m in self.machines if m.caught_up and not m.silent),
            mute=frozenset(m.id for m in self.machines if m.mute),
        )
        return voter_duty(state, seen, self.policy)

    def obey(self, duty: VoterDuty) -> None:
        """Make the change, and check that those who live can still decide."""
        match duty:
            case Promote(node_id=chosen):
                assert int(chosen, 16) not in self.voters
                self.voters.add(int(chosen, 16))
            case Demote(node_id=chosen):
                assert int(chosen, 16) != self.me
                self.voters.remove(int(chosen, 16))
            case HandOver():
                self.me = next(n for n in sorted(self.voters) if n != self.me and self.well(n))
        assert self.has_majority()

    def well(self, number: int) -> bool:
        return next(m for m in self.machines if m.number == number).votes_well

    def has_majority(self) -> bool:
        return 2 * sum(map(self.well, self.voters)) > len(self.voters)

    def settle(self) -> list[VoterDuty]:
        """Until nothing is left to do; no set of voters may come twice."""
        done: list[VoterDuty] = []
        past = {(frozenset(self.voters), self.me)}
        while (duty := self.duty()) is not None:
            self.obey(duty)
            done.append(duty)
            now = (frozenset(self.voters), self.me)
            assert now not in past, f"the voters flap: {done}"
            past.add(now)
        return done


def workers(count: int) -> list[Machine]:
    return [Machine(number) for number in range(1, count + 1)]


def test_the_number_of_voters_is_odd_and_grows_with_the_cluster() -> None:
    for live, expected in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (9, 5)):
        world = World(workers(live), {1})
        world.settle()
        assert len(world.voters) == expected


def test_only_a_learner_that_keeps_up_with_the_log_becomes_a_voter() -> None:
    machines = [Machine(1), Machine(2, caught_up=False), Machine(3), Machine(4)]
    world = World(machines, {1})

    world.settle()

    assert world.voters == {1, 3, 4}


def test_a_voter_that_left_is_replaced() -> None:
    world = World([Machine(1), Machine(2), Machine(3, departed=True), Machine(4)], {1, 2, 3})

    assert world.settle() == [Demote(node(3)), Promote(node(4))]


def test_a_dead_voter_is_replaced_after_half_a_minute_and_before_that_nothing_changes() -> None:
    for silent, expected in ((SHORT, {1, 2, 3}), (LONG, {1, 2, 4})):
        machines = [Machine(1), Machine(2), Machine(3, silent=silent), Machine(4)]
        world = World(machines, {1, 2, 3})
        world.settle()
        assert world.voters == expected


def test_a_dead_voter_that_nobody_can_replace_keeps_its_seat_among_three_not_among_five() -> None:
    three = World([Machine(1), Machine(2), Machine(3, silent=LONG)], {1, 2, 3})
    five = World([*workers(3), *(Machine(n, silent=LONG) for n in (4, 5))], {1, 2, 3, 4, 5})

    assert three.settle() == []
    assert five.settle() == [Demote(node(4)), Demote(node(5))]


def test_a_voter_whose_disk_failed_is_replaced_at_once_and_never_promoted() -> None:
    machines = [Machine(1), Machine(2), Machine(3, mute=True), Machine(4), Machine(5, mute=True)]
    world = World(machines, {1, 2, 3})

    assert world.settle() == [Demote(node(3)), Promote(node(4))]


def test_a_founder_that_has_not_registered_yet_stays_a_voter() -> None:
    for registered in (0, 1, 2):
        machines = [Machine(n, registered=n <= registered) for n in (1, 2, 3)]
        world = World([*machines, Machine(4)], {1, 2, 3})
        assert world.settle() == []


def test_coordinators_that_come_later_replace_workers_one_by_one_once_it_is_calm() -> None:
    machines = [*workers(3), *(Machine(n, role="coordinator") for n in (4, 5, 6))]
    machines += [Machine(n, silent=LONG) for n in (7, 8)]
    world = World(machines, {1, 2, 3}, policy=Policy(max_voters=3), calm=1.0)

    assert world.settle() == []
    world.calm = 60.0
    done = world.settle()
    assert done[:4] == [Promote(node(4)), Demote(node(3)), Promote(node(5)), Demote(node(2))]
    assert HandOver() in done
    assert world.voters == {4, 5, 6}


def test_voters_are_spread_over_the_zones_and_elders_come_first_within_one() -> None:
    zones = {1: "a", 2: "a", 3: "a", 4: "b", 5: "c", 6: "c"}
    machines = [Machine(number, zone=zone) for number, zone in zones.items()]
    world = World(machines, {1}, policy=Policy(max_voters=3))

    world.settle()

    assert world.voters == {1, 4, 5}


def test_an_elder_that_returns_does_not_push_out_who_took_its_seat() -> None:
    world = World(workers(4), {2, 3, 4}, me=2, policy=Policy(max_voters=3))

    assert world.settle() == []


def test_two_voters_become_one_and_never_while_a_third_is_down() -> None:
    down = World([Machine(1), Machine(2), Machine(3, silent=SHORT)], {1, 2, 3})

    assert World(workers(2), {1, 2}).settle() == [Demote(node(2))]
    assert World(workers(2), {1, 2}, me=2).settle() == [HandOver(), Demote(node(2))]
    assert down.settle() == []


numbers = st.integers(1, 8)


@st.composite
def machines(draw: st.DrawFn) -> list[Machine]:
    return [
        Machine(
            number,
            role=draw(st.sampled_from(["worker", "coordinator"])),
            zone=draw(st.sampled_from(["", "a", "b"])),
            silent=draw(st.sampled_from([0.0, 0.0, 0.0, SHORT, LONG])),
            mute=draw(st.sampled_from([False, False, False, True])),
            departed=draw(st.sampled_from([False, False, False, False, True])),
            registered=draw(st.sampled_from([True, True, True, False])),
            caught_up=draw(st.booleans()),
        )
        for number in range(1, 9)
    ]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    voters = draw(st.sets(numbers, min_size=1, max_size=7))
    policy = Policy(max_voters=draw(st.sampled_from([1, 3, 5, 7])))
    world = World(draw(machines()), voters, draw(st.sampled_from(sorted(voters))), policy=policy)
    awake = replace(world.machines[world.me - 1], silent=0.0, mute=False, departed=False)
    world.machines[world.me - 1] = awake
    return world


@settings(deadline=None, max_examples=300)
@given(worlds())
def test_from_any_state_the_voters_settle_without_losing_their_majority(world: World) -> None:
    if not world.has_majority():
        assert world.duty() is None or not world.well(world.me)
        return

    done = world.settle()

    assert len(done) <= 20
    if all(world.well(n) and world.machines[n - 1].registered for n in world.voters):
        assert len(world.voters) % 2 == 1
        assert len(world.voters) <= world.policy.max_voters


@settings(deadline=None, max_examples=200)
@given(worlds(), st.lists(st.tuples(numbers, machines()), max_size=6))
def test_whatever_happens_between_two_steps_no_step_loses_the_majority(
    world: World, changes: list[tuple[int, list[Machine]]]
) -> None:
    for number, fates in changes:
        world.machines[number - 1] = fates[number - 1]
        if not world.well(world.me) or not world.has_majority():
            continue
        duty = world.duty()
        if duty is not None:
            world.obey(duty)
