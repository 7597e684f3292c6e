"""The plan of a study: every run, its parent, and what is already done.

Layer 0. Trunk points that share a recipe form a chain: each hangs on the nearest earlier one, so a point that
is appended or inserted trains only the difference. A run whose folder exists keeps its recorded parent, so
inserting never disturbs what was trained. `freeze` writes the plan once an invocation starts: a config that is
edited while jobs queue does not reach them.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upcycle.errors import UserError
from upcycle.files import write_atomic
from upcycle.study.counting import flops_per_token
from upcycle.study.execution import Execution
from upcycle.study.kernel_fit import check_kernels
from upcycle.study.spec import RunSpec, canonical_json
from upcycle.study.study import StudyConfig
from upcycle.study.sweep import Point, expand, trunk_point


@dataclass(frozen=True)
class Plan:
    """Runs by id, parents before children; finished models by sweep."""

    study: str
    runs: dict[str, RunSpec]
    sweeps: dict[str, list[str]]
    """Ids of each sweep's finished models."""
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The config's names of a run's model and mixture."""

    def members(self, sweep: str) -> list[str]:
        """All runs that a sweep needs, ancestors included, parents first."""
        wanted: set[str] = set()
        stack = list(self.sweeps[sweep])
        while stack:
            run_id = stack.pop()
            if run_id not in wanted:
                wanted.add(run_id)
                stack += self.needs(run_id)
        return [run_id for run_id in self.runs if run_id in wanted]

    def needs(self, run_id: str) -> list[str]:
        """The run whose checkpoint this one starts from, if any."""
        parent = self.runs[run_id].parent
        return [parent] if parent else []

    @property
    def finished_models(self) -> list[str]:
        """Every sweep's finished models, each once, in plan order."""
        wanted = {run_id for ids in self.sweeps.values() for run_id in ids}
        return [run_id for run_id in self.runs if run_id in wanted]

    def membership(self) -> dict[str, list[str]]:
        """Sweeps by finished model."""
        sweeps: dict[str, list[str]] = {}
        for name, ids in self.sweeps.items():
            for run_id in ids:
                sweeps.setdefault(run_id, []).append(name)
        return sweeps

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` brings it back."""
        return {
            "study": self.study,
            "runs": {run_id: run.model_dump(mode="json", exclude_defaults=True) for run_id, run in self.runs.items()},
            "sweeps": self.sweeps,
            "names": {run_id: list(names) for run_id, names in self.names.items()},
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        """The inverse of `to_json`; run ids are computed anew and must agree.

        Raises `UserError` for a plan written by a version that names runs otherwise.
        """
        runs = {run_id: RunSpec.model_validate(spec) for run_id, spec in data["runs"].items()}
        for run_id, run in runs.items():
            if run.id != run_id:
                raise UserError(f"plan of study {data['study']}: run {run_id} is now named {run.id}; plan it anew")
        names = {run_id: (model, moe) for run_id, (model, moe) in data["names"].items()}
        return Plan(data["study"], runs, data["sweeps"], names)


def build_plan(study: StudyConfig, results: Path) -> Plan:
    """Expand every sweep, link trunk points into chains, keep the parents that run folders record.

    Raises `UserError` naming the sweep or run and the mend; also for a kernel that could not compute a run.
    """
    points: dict[str, list[Point]] = {name: expand(study, name) for name in study.sweeps}
    goals: dict[str, RunSpec] = {}
    names: dict[str, tuple[str, str]] = {}
    for sweep_points in points.values():
        for point in sweep_points:
            for each in (point.dense, point):
                if each is not None:
                    goals.setdefault(each.run.id, each.run)
                    names.setdefault(each.run.id, (each.model, each.moe))
    runs = dict(goals)
    for trunk in _trunk_chains(list(goals.values()), study.execution):
        runs[trunk.id] = trunk
    runs = _with_recorded_parents(runs, results / "runs")
    for run in runs.values():
        execution = study.execution_of(run)
        execution.check(run)
        check_kernels(execution, [run])
    for decay in goals.values():
        if decay.parent and decay.role == "decay":
            names.setdefault(decay.parent, names[decay.id])
    sweeps = {name: [point.run.id for point in sweep_points] for name, sweep_points in points.items()}
    return Plan(study.study, _parents_first(runs), sweeps, names)


def _recipe_of(run: RunSpec) -> dict[str, Any]:
    """What all points of a trunk have in common with the decays that branch off it."""
    return run.model_dump(exclude={"role", "start_step", "end_step", "parent"})


def _trunk_chains(goals: list[RunSpec], execution: Execution) -> list[RunSpec]:
    """Every trunk point that the decays need, each continuing from the nearest earlier one."""
    chains: dict[str, dict[int, RunSpec]] = {}
    for decay in goals:
        if decay.role == "decay":
            # The floor cools no trunk: recipes that differ in it alone share one.
            recipe = _recipe_of(decay)
            recipe["schedule"].pop("floor")
            chains.setdefault(canonical_json(recipe), {})[decay.start_step] = decay
    trunks = []
    for branches in chains.values():
        recipe = _recipe_of(next(iter(branches.values())))
        previous: RunSpec | None = None
        for step in sorted(set(branches) | set(_segment_cuts(branches, execution))):
            trunk = trunk_point(recipe, step)
            if previous is not None:
                trunk = trunk.model_copy(update={"start_step": previous.end_step, "parent": previous.id})
            trunks.append(trunk)
            previous = trunk
    return trunks


def _segment_cuts(branches: dict[int, RunSpec], execution: Execution) -> list[int]:
    """Steps at which a trunk is cut so that no segment is expected to exceed `max_segment_hours`.

    Multiples of one length, so that extending a grid moves no cut.
    """
    if execution.max_segment_hours is None:
        return []
    run = next(iter(branches.values()))
    seconds = (
        flops_per_token(run.model, run.moe) * run.tokens_per_step / (execution.flops_per_second * execution.devices)
    )
    length = max(math.floor(execution.max_segment_hours * 3600 / seconds), 1)
    return list(range(length, max(branches), length))


def recorded_spec(run_dir: Path) -> RunSpec | None:
    """The spec.json of a run folder, or None where there is none.

    Raises `UserError` when it is damaged or belongs to another run.
    """
    path = run_dir / "spec.json"
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        data.pop("id", None)
        spec = RunSpec.model_validate(data)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); move the folder away to train the run anew") from None
    if spec.id != run_dir.name:
        raise UserError(f"{path} describes run {spec.id}, not {run_dir.name}; move the folder away")
    return spec


def is_finished(run_dir: Path) -> bool:
    """Whether a run's metrics.json, written last, is there."""
    return (run_dir / "metrics.json").exists()


def _with_recorded_parents(runs: dict[str, RunSpec], runs_dir: Path) -> dict[str, RunSpec]:
    """Runs with the parents that existing folders record, and any recorded ancestors outside the grid."""
    resolved: dict[str, RunSpec] = {}
    stack = list(runs.values())
    while stack:
        run = stack.pop()
        if run.id in resolved:
            continue
        recorded = recorded_spec(runs_dir / run.id)
        if recorded is not None and recorded.parent != run.parent:
            parent_dir = runs_dir / str(recorded.parent)
            # A started run goes on from its recorded parent as long as that is at hand or planned.
            if recorded.parent is None or recorded.parent in runs or is_finished(parent_dir):
                run = recorded
        resolved[run.id] = run
        if run.parent and run.parent not in runs and run.parent not in resolved:
            ancestor = recorded_spec(runs_dir / run.parent)
            if ancestor is not None:
                stack.append(ancestor)
    return resolved


def _parents_first(runs: dict[str, RunSpec]) -> dict[str, RunSpec]:
    """The same runs, each after its parent, otherwise in a stable order."""
    ordered: dict[str, RunSpec] = {}

    def place(run_id: str) -> None:
        if run_id in ordered or run_id not in runs:
            return
        parent = runs[run_id].parent
        if parent:
            place(parent)
        ordered[run_id] = runs[run_id]

    for run_id in sorted(runs, key=lambda r: (runs[r].lineage, runs[r].role == "decay", runs[r].tokens, r)):
        place(run_id)
    return ordered


def freeze(study: StudyConfig, plan: Plan, results: Path) -> Path:
    """Write study and plan to results/.plans/<hash>.json (once) and return the path."""
    text = json.dumps({"study": study.model_dump(mode="json"), "plan": plan.to_json()}, indent=1)
    path = results / ".plans" / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    if not path.exists():
        write_atomic(path, text)
    return path


def thaw(path: Path) -> tuple[StudyConfig, Plan]:
    """Read a frozen study and plan.

    Raises `UserError` when the file is missing or damaged.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return StudyConfig.model_validate(data["study"]), Plan.from_json(data["plan"])
    except OSError as error:
        raise UserError(f"plan {path}: {error.strerror}; start Snakemake again, which writes it") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"plan {path} is damaged ({error}); delete it and start Snakemake again") from None
