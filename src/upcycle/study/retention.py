"""What a study's `keep` lets go of each run, and who reads a run's files. Layer 0: nothing here looks at a disk."""

from __future__ import annotations

from collections import defaultdict

from upcycle.manifest import STATE, WEIGHTS
from upcycle.study.keep import KeepConfig
from upcycle.study.plan import Plan, trunk_of
from upcycle.study.spec import RunSpec


def files_let_go(keep: KeepConfig, plan: Plan) -> dict[str, dict[str, str]]:
    """The files of each run that do not stay, each with the study's key that removes it; no run that keeps all.

    A trunk point that stays has weights and moments: a continuation reads both.
    """
    last = _last_points(plan) if keep.state == "last" else set()
    let_go = {}
    for run_id, run in plan.runs.items():
        files = {}
        if run.role == "trunk":
            if keep.state != "all" and run_id not in last:
                files[STATE] = f"keep.state: {keep.state}"
                if keep.weights != "all":
                    files[WEIGHTS] = f"keep.weights: {keep.weights}"
        elif keep.weights == "none":
            files[WEIGHTS] = "keep.weights: none"
        if files:
            let_go[run_id] = files
    return let_go


def children_of(plan: Plan) -> dict[str, list[str]]:
    """The planned runs that read files of each run when they start."""
    children: dict[str, list[str]] = defaultdict(list)
    for run_id in plan.runs:
        for parent in plan.needs(run_id):
            children[parent].append(run_id)
    return children


def _last_points(plan: Plan) -> set[str]:
    """The trunk points that end latest, one for each trunk."""
    last: dict[object, RunSpec] = {}
    for run in plan.runs.values():
        if run.role == "trunk":
            trunk = trunk_of(run)
            if trunk not in last or last[trunk].end_step < run.end_step:
                last[trunk] = run
    return {run.id for run in last.values()}
