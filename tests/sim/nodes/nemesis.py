"""What goes wrong: one bad thing at a time, by the world's dice."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable

from butterfly_cluster.state import ModelPlace
from butterfly_core.errors import ButterflyError
from tests.sim.nodes.engines import HOME
from tests.sim.nodes.world import Machine, World

Act = Callable[[], Awaitable[None]]


class Nemesis:
    """``strike`` does one thing; ``end`` mends everything and starts every machine."""

    def __init__(self, world: World) -> None:
        self._world, self._dice = world, world.dice
        self._dice_of_deposing = random.Random(f"{world.seed} deposing")
        self._dice_of_offers = random.Random(f"{world.seed} offers")
        self._acts: list[Act] = [
            self._crash,
            self._crash,
            self._crash_all,
            self._kill_coordinator,
            self._kill_coordinator_at_work,
            self._isolate_coordinator,
            self._isolate,
            self._split,
            self._cut_one_way,
            self._flap,
            self._slow_down,
            self._pause,
            self._jump_clock,
            self._kill_engine,
            self._corrupt,
            self._drain,
            self._lose_disk,
            self._move,
            self._fail_registry,
            self._heal,
            self._heal,
        ]

    async def strike(self) -> None:
        act = self._dice.choice(self._acts)
        self._world.tell(act.__name__.strip("_"))
        await act()
        if self._dice_of_deposing.random() < self._world.plot.depose_share:
            await self.depose_while_probing()
        if self._dice_of_offers.random() < self._world.plot.offer_share:
            self._world.in_background(self._offer())
        for machine in self._world.machines:
            if machine.task is None and self._dice.random() < 0.4:
                self._world.start(machine)

    def end(self) -> None:
        world = self._world
        world.tell("everything is mended")
        world.wire.ways.heal()
        world.truth.is_plain = True
        for machine in world.machines:
            machine.mischief.corrupt_share = machine.mischief.fail_share = 0.0
            machine.mischief.slow_seconds = 0.0
            world.resume(machine)
            world.start(machine)

    def _any(self) -> Machine:
        return self._dice.choice(self._world.machines)

    def _coordinator(self) -> Machine:
        leader = self._world.leader()
        return self._world.machine_of(leader) if leader else self._any()

    def _moment(self) -> float:
        return self._dice.choice([0.3, 1.0, 2.5, 4.0])

    async def _crash(self) -> None:
        await self._world.crash(self._any(), silently=self._dice.random() < 0.5)

    async def _crash_all(self) -> None:
        for machine in self._world.machines:
            await self._world.crash(machine)

    async def _kill_coordinator(self) -> None:
        await self._world.crash(self._coordinator(), silently=self._dice.random() < 0.5)

    async def _kill_coordinator_at_work(self) -> None:
        """While it plans or validates; in another moment when it never does in time."""

        def at_work() -> bool:
            leader = self._world.leader()
            if leader is None:
                return False
            state = leader.replica.state
            return state.epoch > state.validated_epoch or not state.is_active

        await self._world.until(at_work, 1.0)
        await asyncio.sleep(self._dice.uniform(0.0, 0.3))
        await self._kill_coordinator()

    async def depose_while_probing(self) -> None:
        """The coordinator dials somebody who just died, slowly; meanwhile another one leads."""
        world, dice = self._world, self._dice_of_deposing
        leader = world.leader()
        others = [node for node in world.running if node is not leader]
        if leader is None or len(others) < 2:
            return
        world.tell("depose while probing")
        world.wire.ways.slow_down(leader.machine, leader.machine, 0.1)
        probes = world.wire.kinds["probe"]
        await world.crash(world.machine_of(dice.choice(others)))
        await world.until(lambda: world.wire.kinds["probe"] > probes, 1.0)
        await asyncio.sleep(dice.uniform(0.0, 0.1))
        with contextlib.suppress(ButterflyError):
            await leader.consensus.hand_over()

    async def _offer(self) -> None:
        """A person asks any node for another revision of the model; it may say no."""
        dice = self._dice_of_offers
        node = dice.choice(self._world.machines).node
        if node is None:
            return
        path = f"{HOME}-{dice.randrange(1, 1000)}"
        with contextlib.suppress(ButterflyError):
            number = await node.offer(ModelPlace("filesystem", path))
            self._world.tell(f"offer {number} is {path}")

    async def _isolate_coordinator(self) -> None:
        self._world.cut_off([self._coordinator()])
        await asyncio.sleep(self._moment())

    async def _isolate(self) -> None:
        self._world.cut_off([self._any()])

    async def _split(self) -> None:
        machines = self._world.machines
        self._world.cut_off(self._dice.sample(machines, self._dice.randrange(len(machines))))
        await asyncio.sleep(self._moment())

    async def _cut_one_way(self) -> None:
        self._world.wire.ways.cut(self._any().name, self._any().name)

    async def _flap(self) -> None:
        self._world.in_background(self._flapping(self._any().name, self._any().name))

    async def _flapping(self, one: str, other: str) -> None:
        ways = self._world.wire.ways
        for _ in range(self._dice.randrange(2, 8)):
            ways.cut(one, other)
            await asyncio.sleep(self._dice.uniform(0.05, 0.8))
            ways.mend(one, other)
            await asyncio.sleep(self._dice.uniform(0.05, 0.5))

    async def _slow_down(self) -> None:
        seconds = self._dice.choice([0.05, 0.2, 0.5])
        self._world.wire.ways.slow_down(self._any().name, self._any().name, seconds)

    async def _pause(self) -> None:
        machine, seconds = self._any(), self._dice.choice([0.2, 0.7, 2.2, 5.0])
        self._world.loop.pause(machine.name)

        async def go_on() -> None:
            await asyncio.sleep(seconds)
            self._world.resume(machine)

        self._world.in_background(go_on())

    async def _jump_clock(self) -> None:
        self._any().clock_ahead_seconds += self._dice.choice([0.3, 1.0, 3.0, 60.0])

    async def _kill_engine(self) -> None:
        node = self._any().node
        if node is not None:
            node.engine.die()

    async def _corrupt(self) -> None:
        mischief = self._any().mischief
        if self._world.plot.with_manifest:
            mischief.corrupt_share = self._dice.choice([0.3, 0.8])
        mischief.fail_share = self._dice.choice([0.0, 0.3])
        mischief.slow_seconds = self._dice.choice([0.0, 0.0, 1.5])

    async def _drain(self) -> None:
        machine = self._any()
        if machine.node is not None and self._world.may_lose(machine):
            machine.node.drain()

    async def _lose_disk(self) -> None:
        machine = self._any()
        if not self._world.may_lose(machine):
            return
        await self._world.crash(machine)
        names = self._dice.choice([(), ("raft.journal",), ("identity.json",)])
        self._world.wipe(machine, names=names)

    async def _move(self) -> None:
        machine = self._any()
        moved = sum(1 for other in self._world.machines if other.moves)
        if 2 * (moved + 1) < len(self._world.machines) and self._world.watch.cluster_ids:
            await self._world.crash(machine)
            self._world.move(machine)
            self._world.start(machine)

    async def _fail_registry(self) -> None:
        self._world.truth.outage_until = self._world.now + self._moment()

    async def _heal(self) -> None:
        self._world.wire.ways.heal()
