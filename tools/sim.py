#!/usr/bin/env python
"""The cluster's code on virtual time, seed after seed, on all cores.

    python tools/sim.py                                  the whole soak (`make sim`)
    python tools/sim.py --world raft --from 500 --seeds 200
    python tools/sim.py --world raft --replay 512        one seed, told line by line

A world is a function that plays one seed and raises AssertionError when something broke; it
returns how many histories it could not judge, if it judges any.
"""

import argparse
import importlib
import importlib.util
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "crates_py")]

WORLDS = {"raft": "tests.sim.raft_world", "nodes": "tests.sim.nodes.story"}
SEEDS = {"raft": 10_000, "nodes": 1_000}
CHUNK = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """One seed's: what broke, or nothing, and how many histories were left undecided."""

    world: str
    seed: int
    problem: str
    undecided: int


def checker_of(world: str) -> Callable[[int], int | None]:
    """The function that plays a seed of the world."""
    module = importlib.import_module(WORLDS[world])
    check: Callable[[int], int | None] = module.check_seed
    return check


def play(job: tuple[str, int]) -> Outcome:
    """In a worker process: play one seed."""
    world, seed = job
    logging.disable(logging.CRITICAL)
    problem, undecided = "", 0
    try:
        undecided = checker_of(world)(seed) or 0
    except AssertionError as error:
        problem = str(error) or traceback.format_exc()
    except Exception:  # noqa: BLE001 - whatever a seed raises is a finding
        problem = traceback.format_exc()
    return Outcome(world, seed, problem, undecided)


def soak(world: str, seeds: range, jobs: int, deadline: float, failures_max: int) -> int:
    """Play the seeds on worker processes; return how many broke. Prints as it goes."""
    started, played, broken, undecided = time.monotonic(), 0, 0, 0
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(jobs) as pool:
        work: Iterator[tuple[str, int]] = ((world, seed) for seed in seeds)
        for outcome in pool.imap_unordered(play, work, chunksize=CHUNK):
            played += 1
            undecided += outcome.undecided
            if outcome.problem:
                broken += 1
                print(f"BROKEN {world} seed {outcome.seed}: {outcome.problem}", flush=True)
            if played % 500 == 0:
                rate = played / (time.monotonic() - started)
                print(f"{world}: {played} of {len(seeds)} seeds, {rate:.1f}/s", flush=True)
            if broken >= failures_max or time.monotonic() > deadline:
                pool.terminate()
                break
    seconds = time.monotonic() - started
    print(
        f"{world}: {played} seeds from {seeds.start} in {seconds:.0f} s, {broken} broken, "
        f"{undecided} histories undecided"
    )
    return broken


def replay(world: str, seed: int) -> int:
    """Play one seed and tell it line by line, when its world can."""
    module = importlib.import_module(WORLDS[world])
    try:
        if hasattr(module, "tell_seed"):
            module.tell_seed(seed, print)
        else:
            module.check_seed(seed)
    except AssertionError as error:
        print(error)
        return 1
    print(f"{world} seed {seed}: nothing broke")
    return 0


def main() -> int:
    """Parse the command line and run. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--world", choices=[*WORLDS, "all"], default="all")
    parser.add_argument("--seeds", type=int, help="how many (default: all of the soak)")
    parser.add_argument("--from", dest="first", type=int, default=0, metavar="SEED")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--failures", type=int, default=3, help="stop after so many broken seeds")
    parser.add_argument("--replay", type=int, metavar="SEED")
    options = parser.parse_args()
    worlds = [name for name in WORLDS if options.world in (name, "all")]
    if options.replay is not None:
        if len(worlds) != 1:
            parser.error("--replay wants one --world")
        return replay(worlds[0], options.replay)
    broken = 0
    deadline = time.monotonic() + options.seconds
    for world in worlds:
        if options.world == "all" and importlib.util.find_spec(WORLDS[world]) is None:
            continue
        seeds = range(options.first, options.first + (options.seeds or SEEDS[world]))
        broken += soak(world, seeds, options.jobs, deadline, options.failures)
    return min(broken, 1)


if __name__ == "__main__":
    sys.exit(main())
