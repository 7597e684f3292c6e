"""What `upcycle plan` reports of the work that is not done yet: cost, time on some nodes, disk, what is removed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upcycle.manifest import STATE, WEIGHTS
from upcycle.study.counting import count_parameters
from upcycle.study.execution import Execution
from upcycle.study.makespan import PRIORITIES, PlannedJob, Schedule, list_schedule
from upcycle.study.memory import FLOAT
from upcycle.study.plan import trunk_of
from upcycle.study.spec import RunSpec, short_count
from upcycle.study.targets import ForecastRuns
from upcycle.study.values import duration
from upcycle.views.text import text_bytes, text_table
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import RESULTS, forecast_path, on_disk
from upcycle.workflow.pruning import Retention

NODES_SHOWN = (1, 2, 4, 8, 16, 32)
"""Numbers of nodes that a makespan is shown for where none is asked for; up to the first that the longest chain holds
back."""
ROLLING_STATES = 2
"""States to resume from that a running job keeps (train/states/folder.py)."""
WHEN = {
    "trunk": "once the trunk points and decays that continue from it are finished",
    "dense model": "once the runs that begin with it, and its evaluations, are finished",
    "model": "once the runs that begin with it, if any, and its evaluations are finished",
}
"""When `keep` lets the files of a kind of run go."""


@dataclass(frozen=True)
class Launch:
    """The unfinished runs of a plan, as jobs on nodes of one kind."""

    workflow: Workflow
    runs: Mapping[str, dict[str, Any]]
    """Runs by id, as `describe_run` describes them."""
    overhead: float
    """Seconds of a job beside training."""

    @property
    def unit(self) -> str:
        """What is counted in hours."""
        return "GPU" if self.workflow.study.execution.device == "cuda" else "core"

    @property
    def per_node(self) -> int:
        """GPUs or cores of a node: of the profile; else as many as the largest job takes, or this machine has."""
        node, on_gpu = self.workflow.node, self.unit == "GPU"
        if node is not None:
            return node.gpus if on_gpu else node.cpus
        largest = max((-(-job.devices // job.nodes) for job in self.jobs.values()), default=1)
        return largest if on_gpu else max(largest, os.cpu_count() or 1)

    @property
    def forecasts(self) -> dict[str, ForecastRuns]:
        """Forecasts that are not written yet, by name."""
        written = self.workflow.out
        return {
            name: runs for name, runs in self.workflow.forecasts.items() if not on_disk(forecast_path(written, name))
        }

    @property
    def jobs(self) -> dict[str, PlannedJob]:
        """Unfinished runs as jobs, and the forecasts that some of them wait for, which take no time."""
        plan, asked = self.workflow.plan, self.forecasts
        forecasts = {
            f"forecast {name}": PlannedJob(0.0, needs=runs.read, priority=max(PRIORITIES.values()))
            for name, runs in asked.items()
        }
        return forecasts | {
            run_id: PlannedJob(
                run["seconds"] + self.overhead,
                devices=_devices(execution := self.workflow.study.execution_of(self.workflow.plan.runs[run_id])),
                nodes=execution.nodes,
                needs=(
                    *plan.needs(run_id),
                    *(f"forecast {name}" for name, runs in asked.items() if run_id in runs.waiting),
                ),
                priority=PRIORITIES[run["kind"]],
            )
            for run_id, run in self.runs.items()
            if not run["finished"]
        }

    def schedules(self, nodes: int | None) -> dict[int, Schedule]:
        """By number of nodes: the one asked for, or those from the fewest that hold every job to enough for all."""
        jobs, per_node = self.jobs, self.per_node
        if nodes is not None:
            return {nodes: list_schedule(jobs, nodes, per_node)}
        fewest = max((job.nodes for job in jobs.values()), default=1)
        found: dict[int, Schedule] = {}
        for number in (fewest, *(each for each in NODES_SHOWN if each > fewest)):
            found[number] = list_schedule(jobs, number, per_node)
            if found[number].makespan < 1.01 * found[number].longest_chain:
                break
        return found


def _devices(execution: Execution) -> int:
    return execution.devices if execution.device == "cuda" else execution.devices * execution.threads


def file_bytes(run: RunSpec) -> dict[str, int]:
    """Sizes of the large files of a finished run: float32 weights and, of a trunk point, AdamW's two moments."""
    weights = FLOAT * count_parameters(run.model, run.moe).total
    return {WEIGHTS: weights} | ({STATE: 2 * weights} if run.role == "trunk" else {})


def describe_launch(
    workflow: Workflow, runs: list[dict[str, Any]], overhead: float, *, nodes: int | None, price: float | None
) -> dict[str, Any]:
    """As data: hours and cost of what is to be done, makespans, disk, removals, what an extension would train again.

    `runs`: as `describe_plan` describes them. `price`: of one GPU or core for an hour. Raises UserError for a job that
    fits no node.
    """
    launch = Launch(workflow, {run["id"]: run for run in runs}, overhead)
    schedules = launch.schedules(nodes)
    hours = sum(job.seconds * job.devices for job in launch.jobs.values()) / 3600
    retention = Retention(workflow, Path.cwd())
    return {
        "unit": launch.unit,
        "per_node": launch.per_node,
        "hours": hours,
        "cost": None if price is None else hours * price,
        "overhead_seconds": overhead,
        "forecasts": {
            name: {"read": len(runs.read), "predicted": len(runs.predicted), "waiting": len(runs.waiting)}
            | {"written": name not in launch.forecasts}
            for name, runs in workflow.forecasts.items()
        },
        "makespan_seconds": {number: schedule.makespan for number, schedule in schedules.items()},
        "longest_chain_seconds": max((schedule.longest_chain for schedule in schedules.values()), default=0.0),
        "disk": disk_use(workflow, next(iter(schedules.values())), retention),
        "keep": workflow.study.keep.model_dump(),
        "removed": removals(workflow, retention),
        "spared": retention.spared,
        "trained_again": sum(repeated_tokens(workflow, launch.runs).values()),
        "extension": extension_costs(workflow, launch.runs),
    }


def disk_use(workflow: Workflow, schedule: Schedule, retention: Retention) -> dict[str, float]:
    """Bytes of run folders now, at most and in the end: results, and the states that running jobs resume from.

    Removals happen in the schedule as soon as the last reader of a run ends.
    """
    plan, changes, now = workflow.plan, [], 0.0
    let_go = retention.let_go
    ends = dict.fromkeys(plan.runs, 0.0) | schedule.ends
    last_read = dict(ends)
    for run_id in plan.runs:
        for parent in plan.needs(run_id):
            last_read[parent] = max(last_read.get(parent, 0.0), ends[run_id])
    for run_id, run in plan.runs.items():
        sizes = file_bytes(run)
        if run_id in schedule.ends:
            rolling = ROLLING_STATES * 3.0 * sizes[WEIGHTS]
            changes += [(schedule.starts[run_id], rolling), (ends[run_id], sum(sizes.values()) - rolling)]
        else:
            sizes = {name: size for name, size in sizes.items() if (RESULTS / "runs" / run_id / name).exists()}
            now += sum(sizes.values())
        going = sum(size for name, size in sizes.items() if name in let_go.get(run_id, {}))
        changes.append((last_read[run_id], -going))
    held = most = now
    for _, change in sorted(changes):
        held += change
        most = max(most, held)
    return {"now": now, "most": most, "end": held}


def removals(workflow: Workflow, retention: Retention) -> list[dict[str, Any]]:
    """What `keep` removes by kind of run: which files, of how many runs, bytes, when."""
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for run_id, files in retention.let_go.items():
        run = workflow.plan.runs[run_id]
        kind = "trunk" if run.role == "trunk" else "dense model" if run.lineage == "dense" else "model"
        what = " and ".join(name.partition(".")[0] for name in sorted(files))
        group = groups.setdefault((kind, what), {"of": kind, "what": what, "runs": 0, "bytes": 0, "when": WHEN[kind]})
        group["runs"] += 1
        group["bytes"] += sum(size for name, size in file_bytes(run).items() if name in files)
    return list(groups.values())


def repeated_tokens(workflow: Workflow, runs: Mapping[str, dict[str, Any]]) -> dict[str, int]:
    """Tokens that unfinished trunk points train again, by run: finished points were to be continued from."""
    done: dict[object, list[int]] = {}
    plan = workflow.plan.runs
    for run_id, run in plan.items():
        if run.role == "trunk" and runs[run_id]["finished"]:
            done.setdefault(trunk_of(run), []).append(run.end_step)
    repeated = {}
    for run_id, run in plan.items():
        if run.role == "trunk" and not runs[run_id]["finished"]:
            reached = max((step for step in done.get(trunk_of(run), ()) if step < run.end_step), default=0)
            if reached > run.start_step:
                repeated[run_id] = (reached - run.start_step) * run.tokens_per_step
    return repeated


def extension_costs(workflow: Workflow, runs: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What later extensions of the study would train again because of `keep`: tokens, and GPU- or core-hours.

    Of all its trunks, or all its dense models: an extension of some costs its share.
    """
    plan, keep = workflow.plan, workflow.study.keep

    def cost(case: str, wanted: list[RunSpec]) -> dict[str, Any]:
        hours = 0.0
        for run in wanted:
            rate = runs[run.id]["seconds"] / run.segment_tokens
            hours += rate * run.tokens * _devices(workflow.study.execution_of(run)) / 3600
        return {"case": case, "runs": len(wanted), "tokens": sum(run.tokens for run in wanted), "hours": hours}

    trunks: dict[object, list[RunSpec]] = {}
    for run in plan.runs.values():
        if run.role == "trunk":
            trunks.setdefault(trunk_of(run), []).append(run)
    longest = [max(points, key=lambda run: run.end_step) for points in trunks.values()]
    costs = []
    if keep.state == "none":
        costs.append(cost("longer budgets: trunks, from their start to where they end now", longest))
    if keep.state == "last":
        costs.append(cost("budgets between those of a trunk: trunks, from their start to there at most", longest))
    if keep.weights == "none":
        # A decay's tokens are those of its trunk and its own; the trunk's state may be there, so this is the most.
        dense = [run for run in plan.runs.values() if run.lineage == "dense" and run.role in ("decay", "full")]
        if dense:  # an imported one is imported again
            costs.append(cost("other mixtures upcycled from these dense models: the dense models", dense))
    return costs


def show_launch(launch: dict[str, Any], *, price: float | None, tokens: int, flops: float) -> list[str]:
    """Lines for a person; `tokens` and `flops` of what is to be trained."""
    unit = launch["unit"]
    if not launch["hours"]:
        lines = ["Nothing is left to train."]
    else:
        cost = "" if price is None else f", {launch['cost']:,.2f} at {price:g} a {unit}-hour"
        hours = _hours(launch["hours"])
        lines = [f"To do: {short_count(tokens)} tokens, {flops:.2g} FLOPs, {hours} {unit}-hours{cost}."]
        if launch["trained_again"]:
            again = short_count(launch["trained_again"])
            lines.append(f"  {again} of these tokens are trained again: `keep` removed the states to continue from.")
        lines += _time_lines(launch, price)
    for name, each in launch["forecasts"].items():
        state = "it is written" if each["written"] else f"{each['waiting']} runs wait until it is written"
        lines.append(f"Forecast {name}: {each['predicted']} runs predicted from {each['read']} smaller ones; {state}.")
    disk, keep = launch["disk"], launch["keep"]
    lines += [
        f"Disk of runs: {text_bytes(disk['now'])} now, {text_bytes(disk['most'])} at most with states to resume from, "
        f"{text_bytes(disk['end'])} in the end.",
        f"  By keep: {{state: {keep['state']}, weights: {keep['weights']}}} of the study.",
    ]
    if launch["removed"]:
        rows = [
            {"removed": f"{row['what']} of a {row['of']}", "runs": str(row["runs"]), "disk": text_bytes(row["bytes"])}
            | {"when": row["when"]}
            for row in launch["removed"]
        ]
        lines += ["", *text_table(rows, left=["removed", "when"])]
    if launch["spared"]:
        studies = ", ".join(f"`{name}`" for name in sorted(set(launch["spared"].values())))
        lines.append(f"Kept for unfinished runs of study {studies}: files of {len(launch['spared'])} runs.")
    if launch["extension"]:
        lines += ["", "What later extensions would train again, because `keep` removes it:"]
        for row in launch["extension"]:
            lines.append(
                f"  {row['case']} ({row['runs']}; {short_count(row['tokens'])} tokens, {_hours(row['hours'])} "
                f"{unit}-hours in all)"
            )
    return lines


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def _time_lines(launch: dict[str, Any], price: float | None) -> list[str]:
    """Makespans by number of nodes, and the longest chain of runs, which no number of nodes shortens."""
    unit, per_node = launch["unit"], launch["per_node"]
    chain, overhead = duration(launch["longest_chain_seconds"]), launch["overhead_seconds"]
    beside = f"; beside training a job takes {duration(overhead)}, as measured" if overhead else " and start-up of jobs"
    times = launch["makespan_seconds"]
    shown = ", ".join(f"{duration(seconds)} on {nodes}" for nodes, seconds in times.items())
    units = f"{per_node} {unit}s" if per_node > 1 else f"1 {unit}"
    lines = [
        f"Time: {shown} {'node' if list(times) == [1] else 'nodes'} of {units}; the longest chain of runs: {chain}.",
        f"  By list scheduling, without queues{beside}.",
    ]
    if price is not None and len(times) == 1:
        ((nodes, seconds),) = times.items()
        rent = nodes * per_node * seconds / 3600 * price
        lines.append(f"  Renting the {nodes * per_node} {unit}s for all of that time costs {rent:,.2f}.")
    return lines
