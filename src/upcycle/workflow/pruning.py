"""Removing what a study's `keep` does not keep, once nothing that is planned reads it, and what having it again costs.

The manifest says first that a file was removed, durably, then the file goes: whoever reads the run finds the file, or
why it is not there. A job that is killed in between is done again by the next invocation. A run whose files were
removed stays finished: nothing trains it again unless a user asks for it.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from upcycle.errors import UserError
from upcycle.files import TEMPORARY, sync_folder, write_atomic
from upcycle.manifest import MANIFEST, REMOVED, STATE, WEIGHTS, json_bytes, read_manifest, removed_files, sealed
from upcycle.study.check import find_study, find_study_file, list_studies
from upcycle.study.parent import AbsentError
from upcycle.study.plan import Plan, build_plan
from upcycle.study.recorded import is_finished, is_removed, recorded_spec
from upcycle.study.retention import children_of, files_let_go
from upcycle.study.spec import RunSpec
from upcycle.train.states.lease import lease
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import RESULTS, metrics_path, pruned_path

log = logging.getLogger(__name__)


class Retention:
    """The removals of one study: which runs lose which files, and what must be finished before."""

    def __init__(self, workflow: Workflow, root: Path | None) -> None:
        """`root`: the folder that Snakemake works in, whose other studies may read the same runs.

        None in a job: the invocation asked for nothing that another study needs when it started.
        """
        self.workflow = workflow
        self.root = root

    @cached_property
    def let_go(self) -> dict[str, dict[str, str]]:
        """Files that go, by run, with the key that removes them; none that another study still reads.

        None at all while a study cannot be planned: nobody knows what it reads.
        """
        if self._needed_elsewhere is None:
            return {}
        return {run_id: files for run_id, files in self._by_keep.items() if run_id not in self.spared}

    @cached_property
    def _by_keep(self) -> dict[str, dict[str, str]]:
        return files_let_go(self.workflow.study.keep, self.workflow.plan)

    @cached_property
    def spared(self) -> dict[str, str]:
        """Runs that keep their files for unfinished work of another study, which is named."""
        elsewhere = self._needed_elsewhere or {}
        return {run_id: elsewhere[run_id] for run_id in self._by_keep if run_id in elsewhere}

    @cached_property
    def _needed_elsewhere(self) -> dict[str, str] | None:
        """Runs that unfinished runs of other studies start from, each with one such study.

        None, and a warning with its file, if one of them cannot be planned.
        """
        needed: dict[str, str] = {}
        if self.root is None or not self._by_keep:
            return needed
        for name in list_studies(self.root):
            if name == self.workflow.study.study:
                continue
            try:
                other = build_plan(find_study(name, self.root), RESULTS)
            except AbsentError:  # what begins with a checkpoint that was never here has not begun
                continue
            except UserError as error:
                path = find_study_file(name, self.root)
                log.warning(
                    "keep removes nothing while %s, whose study may read the same runs, cannot be planned: %s. Fix it, "
                    "or move it out of the way.",
                    path.relative_to(self.root),
                    str(error).removeprefix(f"{path}: ").rstrip("."),
                )
                return None
            for run_id, run in other.runs.items():
                if not is_finished(RESULTS / "runs" / run_id):
                    needed |= dict.fromkeys(other.reads(run), name)
        return needed

    @cached_property
    def readers(self) -> dict[str, list[str]]:
        """Files whose presence means that work which reads a run is finished: metrics of children, evaluations,
        benchmarks."""
        readers = {run_id: list(map(metrics_path, ids)) for run_id, ids in children_of(self.workflow.plan).items()}
        for pairs in self.workflow.evaluations.values():
            for run_id, path in pairs:
                readers.setdefault(run_id, []).append(path)
        for asked in self.workflow.benchmarks.values():
            for run_id, _, path in asked:
                readers.setdefault(run_id, []).append(path)
        return readers

    @cached_property
    def due(self) -> dict[str, str]:
        """Marker files of the removals that are still to be made, by run: of unfinished runs too."""
        return {
            run_id: pruned_path(run_id, files)
            for run_id, files in self.let_go.items()
            if not is_finished(RESULTS / "runs" / run_id)
            or any((RESULTS / "runs" / run_id / name).exists() for name in files)
        }

    def prune(self, run_id: str) -> None:
        """Remove what `keep` does not keep of a finished run; prints a line.

        Raises UserError for a run that is not finished, or that unfinished work still reads.
        """
        files = self.let_go.get(run_id, {})
        waiting = [path for path in self.readers.get(run_id, ()) if path in self.unfinished]
        if waiting and files:
            raise UserError(f"{run_id}: {waiting[0]} is still to be made from its files; nothing is removed before")
        run_dir = RESULTS / "runs" / run_id
        removed = remove_files(
            run_dir, {name: f"{key} of study `{self.workflow.study.study}`" for name, key in files.items()}
        )
        if files:
            write_atomic(Path(pruned_path(run_id, files)), "".join(f"{name}\n" for name in files))
        print(f"{run_id}: " + (f"removed {', '.join(removed)}" if removed else "nothing to remove"))

    @cached_property
    def unfinished(self) -> set[str]:
        """Files of `readers` that are not there, or not of the present weights."""
        paths = {path for paths in self.readers.values() for path in paths}
        return {path for path in paths if not Path(path).exists()} | (
            self.workflow.stale_evaluations | self.workflow.stale_benchmarks
        )


def remove_files(run_dir: Path, files: dict[str, str]) -> list[str]:
    """Remove files of a finished run, each by a key of a study; returns those that were there.

    Under the run's lease: UserError if a process writes the run, DamagedError if its manifest does not hold.
    """
    with lease(run_dir):
        for left in run_dir.glob(f".{MANIFEST}.*{TEMPORARY}"):  # by a call that was killed
            left.unlink()
        manifest = read_manifest(run_dir)
        files = {name: by for name, by in files.items() if name in manifest["files"]}
        new = files.keys() - removed_files(manifest).keys()
        if new:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            notes = removed_files(manifest) | {name: {"time": now, "by": files[name]} for name in sorted(new)}
            write_atomic(run_dir / MANIFEST, json_bytes(sealed(manifest | {REMOVED: notes})).decode())
            sync_folder(run_dir)  # the note must outlive a power cut that the removal outlives
        there = [name for name in files if (run_dir / name).exists()]
        for name in there:
            (run_dir / name).unlink()
        return there


# Having them again


def restarted(run: RunSpec) -> RunSpec:
    """A run as `train --fresh` trains it: a trunk point without a predecessor to continue from begins at the start."""
    if run.role == "trunk" and run.start_step and is_removed(RESULTS / "runs" / str(run.parent), WEIGHTS, STATE):
        return run.model_copy(update={"start_step": 0, "parent": run.dense_parent})
    return run


def trained_again(plan: Plan, run_id: str, *names: str) -> list[RunSpec]:
    """Finished runs to train again, in order, before a finished run has these files; [] if none was removed."""
    if not is_removed(RESULTS / "runs" / run_id, *names):
        return []
    run = restarted(recorded_spec(RESULTS / "runs" / run_id) or plan.runs[run_id])
    before = {each.id: each for parent, read in plan.reads(run).items() for each in trained_again(plan, parent, *read)}
    return [*before.values(), run]


def check_kept_for(plan: Plan, what: str, run_id: str, *names: str) -> None:
    """Raise UserError with the commands that help if a file that `what` reads of a finished run was removed."""
    again = trained_again(plan, run_id, *names)
    if not again:
        return
    removed = removed_files(read_manifest(RESULTS / "runs" / run_id))
    name = next(name for name in names if name in removed)
    commands = ", then ".join(f"`upcycle train {run.id} --fresh`" for run in again)
    tokens = sum(run.segment_tokens for run in again)
    raise UserError(
        f"{what} reads {RESULTS / 'runs' / run_id / name}, which {removed[name]['by']} removed on "
        f"{removed[name]['time'][:10]}. To have it again, {tokens:,} tokens are trained again: {commands}"
    )


def check_start(plan: Plan, run: RunSpec) -> None:
    """`check_kept_for` what a run starts from."""
    for parent, names in plan.reads(run).items():
        check_kept_for(plan, run.id, parent, *names)
