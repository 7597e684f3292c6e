"""How long jobs take side by side: list scheduling on a number of nodes, and the longest chain of jobs.

Layer 0. Of the jobs that are ready and fit, that of the highest priority starts, as Snakemake does; among equals that
with the longest chain behind it. The makespan is at most twice the best one (Graham 1966); queues and failures come on
top.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from upcycle.errors import UserError

PRIORITIES = {"import": 45, "dense": 40, "decay": 35, "moe": 30, "up": 20, "cont": 20}
"""Of Snakemake's training rules, by kind of run: what most other work waits for comes first."""


@dataclass(frozen=True)
class PlannedJob:
    """What a job takes: seconds, and devices on one node or, in equal shares, on several."""

    seconds: float
    devices: int = 1
    """On all its nodes together."""
    nodes: int = 1
    needs: tuple[str, ...] = ()
    """Jobs that must be finished before; names that are not scheduled are."""
    priority: int = 0


@dataclass(frozen=True)
class Schedule:
    """When each job starts and ends, in seconds from now."""

    starts: dict[str, float]
    ends: dict[str, float]
    longest_chain: float
    """Seconds of the critical path: no number of nodes is faster."""

    @property
    def makespan(self) -> float:
        """Seconds until the last job ends."""
        return max(self.ends.values(), default=0.0)


def list_schedule(jobs: Mapping[str, PlannedJob], nodes: int, devices: int) -> Schedule:
    """Schedule jobs on nodes of so many devices each: whenever a job ends, start the ready ones that fit.

    Raises UserError naming a job that fits no node.
    """
    children: dict[str, list[str]] = defaultdict(list)
    waits = {name: [each for each in job.needs if each in jobs] for name, job in jobs.items()}
    for name, needs in waits.items():
        for each in needs:
            children[each].append(name)
    for name, job in jobs.items():
        if job.nodes > nodes or job.devices > devices * job.nodes:
            raise UserError(
                f"{name} takes {job.devices} devices on {job.nodes} of {nodes} nodes with {devices} each: it would "
                "never start. Give more --nodes, or the job fewer devices"
            )
    tails = _tails(jobs, children)
    free = [devices] * nodes
    left = {name: len(needs) for name, needs in waits.items()}
    ready: dict[tuple[int, int], list[tuple[int, float, str]]] = defaultdict(
        list
    )  # heaps by the devices that a job takes
    running: list[tuple[float, str, list[int]]] = []
    starts: dict[str, float] = {}
    ends: dict[str, float] = {}
    now = 0.0
    arrived: Iterable[str] = [name for name, count in left.items() if count == 0]
    while True:
        for name in arrived:
            heapq.heappush(ready[jobs[name].devices, jobs[name].nodes], (-jobs[name].priority, -tails[name], name))
        while chosen := _first_that_fits(ready, free):
            (_, _, name), places = chosen
            starts[name] = now
            heapq.heappush(running, (now + jobs[name].seconds, name, places))
        if not running:
            return Schedule(starts, ends, max(tails.values(), default=0.0))
        now, name, places = heapq.heappop(running)
        ends[name] = now
        for place in places:
            free[place] += jobs[name].devices // len(places)
        for child in children[name]:
            left[child] -= 1
        arrived = [child for child in children[name] if left[child] == 0]


def _tails(jobs: Mapping[str, PlannedJob], children: Mapping[str, list[str]]) -> dict[str, float]:
    """Seconds from a job's start to the end of the longest chain that begins with it."""
    tails: dict[str, float] = {}
    for first in jobs:
        stack = [first]  # not by recursion: a trunk may be cut into hundreds of segments
        while stack:
            name = stack[-1]
            waiting = [child for child in children.get(name, ()) if child not in tails]
            if waiting and name not in tails:
                stack += waiting
                continue
            tails[name] = jobs[name].seconds + max((tails[child] for child in children.get(name, ())), default=0.0)
            stack.pop()
    return tails


def _first_that_fits(
    ready: Mapping[tuple[int, int], list[tuple[int, float, str]]], free: list[int]
) -> tuple[tuple[int, float, str], list[int]] | None:
    """Take the ready job that comes first of those that fit now, and the nodes that it starts on."""
    for shape in sorted((shape for shape, heap in ready.items() if heap), key=lambda shape: ready[shape][0]):
        devices, nodes = shape
        share = devices // nodes
        fitting = sorted((each, place) for place, each in enumerate(free) if each >= share)
        if len(fitting) >= nodes:
            places = [place for _, place in fitting[:nodes]]  # the fullest: whole nodes stay free for large jobs
            for place in places:
                free[place] -= share
            return heapq.heappop(ready[shape]), places
    return None
