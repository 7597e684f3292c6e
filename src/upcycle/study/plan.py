"""The plan of a study: every run, its parent, and what is already done.

Layer 0. Trunk points that share a recipe form a chain: each hangs on the nearest earlier one, so a point that
is appended or inserted trains only the difference. A run that has begun keeps its recorded parent, so neither
inserting nor another estimate of speed disturbs what was trained. `freeze` writes the plan once an invocation
starts: a config that is edited while jobs queue does not reach them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upcycle.data.verified import NotedHashes
from upcycle.errors import UserError
from upcycle.files import given_path
from upcycle.manifest import STATE, WEIGHTS
from upcycle.study.execution import Execution
from upcycle.study.kernel_fit import check_kernels
from upcycle.study.parent import Checkpoint, identify, noted_hashes
from upcycle.study.rates import Speeds, expected_seconds, measured_run, speeds_by_shape
from upcycle.study.recorded import RunFolders
from upcycle.study.spec import Recipe, RunSpec
from upcycle.study.study import ImportedStudy, StudyConfig
from upcycle.study.sweep import Point, expand_sweep, trunk_point

log = logging.getLogger(__name__)

MAX_CUTS = 500
"""Cuts of one trunk between two points of a grid."""


@dataclass(frozen=True)
class Plan:
    """Runs by id, parents before children; finished models by sweep."""

    study: str
    runs: Mapping[str, RunSpec]
    sweeps: dict[str, list[str]]
    """Ids of each sweep's finished models."""
    names: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The config's names of a run's model and mixture."""
    orphans: list[str] = field(default_factory=list)
    """Finished runs whose parent is gone: nothing can train them again."""
    checkpoints: dict[str, dict[str, str]] = field(default_factory=dict)
    """SHA-256 of the files of each imported run's checkpoint, by run and file name."""

    def members(self, sweep: str) -> list[str]:
        """All runs that a sweep needs, ancestors included, parents first."""
        wanted = self.with_ancestors(self.sweeps[sweep])
        return [run_id for run_id in self.runs if run_id in wanted]

    def with_ancestors(self, run_ids: Iterable[str]) -> set[str]:
        """These runs and all planned runs that they need."""
        wanted: set[str] = set()
        stack = list(run_ids)
        while stack:
            run_id = stack.pop()
            if run_id in self.runs and run_id not in wanted:
                wanted.add(run_id)
                stack += self.needs(run_id)
        return wanted

    def needs(self, run_id: str) -> list[str]:
        """The runs of which this one reads files when it starts."""
        return list(self.reads(self.runs[run_id]))

    def reads(self, run: RunSpec) -> dict[str, tuple[str, ...]]:
        """The files that a run reads when it starts, by run: of its parent, and of the trunk point whose moments it
        copies, off which the parent's decay branched."""
        if run.parent is None:
            return {}
        found: dict[str, tuple[str, ...]] = {run.parent: (WEIGHTS, STATE) if run.init == "continue" else (WEIGHTS,)}
        if run.copies_moments and run.init != "continue" and run.parent in self.runs:
            trunk = self.runs[run.parent].parent
            assert trunk is not None  # a decay: `sweep.expand_sweep` refuses other parents
            found[trunk] = (STATE,)
        return found

    @property
    def finished_models(self) -> list[str]:
        """Every sweep's finished models, and imported ones, each once, in plan order."""
        wanted = {run_id for ids in self.sweeps.values() for run_id in ids}
        # By the id's first word: a frozen plan validates no run for it.
        return [run_id for run_id in self.runs if run_id in wanted or run_id.startswith("import-")]

    def membership(self) -> dict[str, list[str]]:
        """Sweeps by finished model."""
        sweeps: dict[str, list[str]] = {}
        for name, ids in self.sweeps.items():
            for run_id in ids:
                sweeps.setdefault(run_id, []).append(name)
        return sweeps


def find_checkpoints(study: StudyConfig, hashes: NotedHashes) -> dict[str, Checkpoint]:
    """The checkpoints that sweeps begin with, by model.

    Raises `UserError` naming a file that is not as it must be, and for tokens of another tokenizer than its own.
    """
    used = dict.fromkeys(model for sweep in study.sweeps.values() if sweep.has_checkpoints for model in sweep.model)
    found, data = {}, study.data
    for name, folder in ((name, study.models[name].checkpoint) for name in used):
        if folder is None:
            continue
        try:
            found[name] = checkpoint = identify(given_path(folder), hashes)
        except UserError as error:
            raise type(error)(f"models.{name}.checkpoint: {error}") from None
        own = checkpoint.parent.tokenizer
        # A file that is gone is of a token set that is there, whose own notes the import compares.
        given = hashes.of(given_path(data.tokenizer))
        if data.tokenizer == "bpe" or given not in (None, checkpoint.tokenizer_sha256):
            raise UserError(
                f"data.tokenizer: `{data.tokenizer}` is not {own}, whose pieces the embedding of models.{name} is of; "
                f"write `tokenizer: {own}`, and its number of pieces as `vocab_size`"
            )
        if data.vocab_size > checkpoint.parent.rows:
            raise UserError(
                f"data.vocab_size: {data.vocab_size:,} pieces, but the embedding of models.{name} has "
                f"{checkpoint.parent.rows:,} rows; give the number of pieces of {own}"
            )
    hashes.save()
    return found


def build_plan(study: StudyConfig, results: Path) -> Plan:
    """Expand every sweep, link trunk points into chains, keep the parents that run folders record.

    A study that takes its losses from files has no runs.

    Raises `UserError` naming the sweep or run and how to fix it; also for a kernel that could not compute a run.
    """
    if isinstance(study, ImportedStudy):
        return Plan(study.study, {}, {})
    checkpoints = find_checkpoints(study, noted_hashes())
    points: dict[str, list[Point]] = {name: expand_sweep(study, name, checkpoints) for name in study.sweeps}
    goals: dict[str, RunSpec] = {}
    names: dict[str, tuple[str, str]] = {}
    for sweep_points in points.values():
        for point in sweep_points:
            for each in (point.dense, point):
                if each is not None:
                    goals.setdefault(each.run.id, each.run)
                    names.setdefault(each.run.id, (each.model, each.moe))
    folders = RunFolders(results / "runs")
    runs = dict(goals)
    speeds = _speeds(goals.values(), results) if study.execution.max_segment_hours else {}
    for branches in _branches_by_trunk(list(goals.values())):
        decay = next(iter(branches.values()))
        longest = _longest_segment(decay, study.execution_of(decay), speeds)
        runs |= {trunk.id: trunk for trunk in _trunk_points(branches, longest, folders)}
    runs |= _trained_ancestors(runs, folders)
    for run in runs.values():
        execution = study.execution_of(run)
        execution.check(run)
        check_kernels(execution, [run])
    for goal in goals.values():
        run = goal
        while run.role != "full" and run.parent in runs and run.parent not in names:  # up the trunk
            names[run.parent] = names[goal.id]
            run = runs[run.parent]
    sweeps = {name: [point.run.id for point in sweep_points] for name, sweep_points in points.items()}
    lost = [run_id for run_id, run in runs.items() if run.parent is not None and run.parent not in runs]
    orphans = [run_id for run_id in lost if folders.finished(run_id)]
    by_fingerprint = {checkpoint.fingerprint: checkpoint.files for checkpoint in checkpoints.values()}
    imported = {run_id: by_fingerprint[run.checkpoint] for run_id, run in goals.items() if run.checkpoint}
    return Plan(study.study, _parents_first(runs), sweeps, names, orphans, imported)


def _recipe_of(run: RunSpec) -> dict[str, Any]:
    """What all points of a trunk have in common with the decays that branch off it."""
    return {name: getattr(run, name) for name in Recipe.model_fields}


def trunk_of(run: RunSpec) -> Hashable:
    """The trunk that a run is a point of, or branches off: its recipe without `floor`."""
    schedule = run.schedule.model_copy(update={"floor": 0.0})  # trunks run at constant LR
    return tuple((_recipe_of(run) | {"schedule": schedule}).values())


def _branches_by_trunk(goals: list[RunSpec]) -> list[dict[int, RunSpec]]:
    """For each trunk, the steps at which decays branch off, each with one of its decays."""
    trunks: dict[Hashable, dict[int, RunSpec]] = {}
    for decay in goals:
        if decay.role == "decay":
            trunks.setdefault(trunk_of(decay), {})[decay.start_step] = decay
    return list(trunks.values())


def _trunk_points(branches: dict[int, RunSpec], longest: int | None, folders: RunFolders) -> list[RunSpec]:
    """The points of one trunk that its decays need, and what leads to those that have not begun.

    A point that has begun keeps its parent. Any other continues from the nearest earlier point, needed or begun (a cut
    of an older estimate, a point of another study). Only if that leaves a segment of more than `longest` steps is it
    cut: an estimate decides what is trained next, never what is trained again. Where `keep` removed the state of a
    point, nothing continues from it.
    """
    decay = next(iter(branches.values()))
    needed = {step: trunk_point(_recipe_of(decay), step) for step in sorted(branches)}
    begun = {step: run for step, point in needed.items() if (run := folders.begun(point.id))}
    if len(begun) < len(needed):  # else nothing looks for a start, and folders of other studies need not be read
        trunk = trunk_of(decay)
        begun |= {run.end_step: run for run in folders.like(needed[min(needed)]) if trunk_of(run) == trunk}
    points: dict[int, RunSpec] = {}

    def recorded(run: RunSpec) -> RunSpec:
        """A point that has begun; one whose parent is lost, which it no longer needs, hangs on a needed point."""
        known = {None, run.dense_parent, *(point.id for point in needed.values())}
        if run.parent in known or folders.trained(run.parent):
            return run
        earlier = max((step for step in points if step < run.end_step), default=0)
        return _continued(trunk_point(_recipe_of(decay), run.end_step), points.get(earlier))

    for step, point in needed.items():
        if step in begun:
            points[step] = recorded(begun[step])
            continue
        earlier = (before for before in sorted({*points, *begun}, reverse=True) if before < step)
        start = next((before for before in earlier if before not in begun or folders.continuable(begun[before].id)), 0)
        if start in begun and start not in points:
            points[start] = recorded(begun[start])
        for cut in _cuts(start, point, longest):
            while cut in begun:  # without its state, so nothing can continue from it
                cut -= 1
            if cut <= start:
                continue
            points[cut] = _continued(trunk_point(_recipe_of(decay), cut), points.get(start))
            start = cut
        points[step] = _continued(point, points.get(start))
    return list(points.values())


def _cuts(start: int, point: RunSpec, longest: int | None) -> range:
    """Steps between `start` and a trunk point, `longest` apart; none without that limit.

    Raises `UserError` for more than 500: years of a job after another, or a mistake in a rate.
    """
    cuts = range(start + longest, point.end_step, longest) if longest else range(0)
    if len(cuts) > MAX_CUTS:
        raise UserError(
            f"execution.max_segment_hours would cut the trunk to {point.id} into {len(cuts) + 1:,} segments, more than "
            f"{MAX_CUTS}; raise it or execution.flops_per_second, or lower the budget"
        )
    return cuts


def _continued(point: RunSpec, before: RunSpec | None) -> RunSpec:
    """A trunk point as the segment that starts where `before` ends; None: from the start."""
    return point.model_copy(update={"start_step": before.end_step, "parent": before.id}) if before else point


def _speeds(runs: Iterable[RunSpec], results: Path) -> Speeds:
    """Measured speeds, by which trunks are cut. Without damaged metrics, or the verb that restores them would fail."""
    measured = []
    for run in runs:
        try:
            measured.append(measured_run(run, results))
        except UserError as error:
            log.warning("%s (until then its speed is not used)", error)
    return speeds_by_shape(filter(None, measured))


def _longest_segment(run: RunSpec, execution: Execution, speeds: Speeds) -> int | None:
    """Steps of a run's trunk that are expected to take `max_segment_hours`, at least 1; None without that limit."""
    if execution.max_segment_hours is None:
        return None
    seconds_a_step = expected_seconds(run, execution, speeds) / (run.end_step - run.start_step)
    return max(math.floor(execution.max_segment_hours * 3600 / seconds_a_step), 1)


def _trained_ancestors(runs: dict[str, RunSpec], folders: RunFolders) -> dict[str, RunSpec]:
    """Trained runs outside the grid that lead to runs of it."""
    ancestors: dict[str, RunSpec] = {}
    for run in runs.values():
        while run.parent and run.parent not in runs and run.parent not in ancestors:
            parent = folders.begun(run.parent) if folders.trained(run.parent) else None
            if parent is None:
                break
            ancestors[parent.id] = run = parent
    return ancestors


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
