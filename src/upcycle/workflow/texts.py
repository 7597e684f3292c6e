"""A study's own text files: which files its globs match, and whether they changed since they were tokenised."""

from __future__ import annotations

import glob
from pathlib import Path

from upcycle.data.local import hold_tokens
from upcycle.data.parts import FEW_STEPS, making_steps
from upcycle.data.provenance import MANIFEST, check_unchanged
from upcycle.errors import UserError
from upcycle.files import given_path
from upcycle.study.texts import LocalDataset
from upcycle.workflow.dag import Workflow
from upcycle.workflow.hub_notes import fetched_files, noted_files
from upcycle.workflow.paths import REHEARSAL, RESULTS, evaluation_tokens_id, metrics_path, on_disk, tokens_path


def files_of(local: LocalDataset, name: str, key: str) -> list[Path]:
    """Files of a user's data set by their key, `files` or `heldout_files`, sorted within each pattern.

    Raises `UserError` for a pattern that matches nothing, and for a hub's data set that was not fetched.
    """
    if local.hub is not None:
        return fetched_files(local, name)[key]
    found: list[Path] = []
    for pattern in getattr(local, key):
        matches = _matches(pattern)
        if not matches:
            where = f"datasets.{name}.{key}: nothing matches `{pattern}` in {Path.cwd()}"
            raise UserError(f"{where}; put the files there, or name theirs")
        found += matches
    return found


def _matches(pattern: str) -> list[Path]:
    pattern = str(given_path(pattern))
    return [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]  # noqa: PTH207 - it may be absolute


def tokens_to_make(workflow: Workflow) -> list[str]:
    """Missing token sets that an unfinished run, evaluation or benchmark reads."""
    runs, evaluations = workflow.plan.runs, workflow.study.evaluations
    unfinished = [run for run_id, run in runs.items() if not on_disk(metrics_path(run_id))]
    needed = {run.data.tokens_id: None for run in unfinished}
    for name, pairs in workflow.evaluations.items():
        for run_id, path in pairs:
            if path in workflow.stale_evaluations:
                run = runs[run_id]
                needed |= {run.data.tokens_id: None, evaluation_tokens_id(run, evaluations[name]): None}
    for asked in workflow.benchmarks.values():  # whose tokenizer cuts the questions
        needed |= {runs[run_id].data.tokens_id: None for run_id, _, path in asked if path in workflow.stale_benchmarks}
    return [name for name in needed if not Path(tokens_path(name)).exists()]


def stages_of(workflow: Workflow, name: str) -> list[list[str]]:
    """Steps of a token set that is to be made by several jobs, in stages.

    Empty for a small set, for one that is made already, and for one that no unfinished run reads: its text may be gone.
    """
    if name not in workflow.making_stages:
        workflow.making_stages[name] = _stages(workflow, name)
    return workflow.making_stages[name]


def _stages(workflow: Workflow, name: str) -> list[list[str]]:
    dataset = workflow.token_sets[name].data.dataset
    local = workflow.study.datasets.get(dataset)
    if REHEARSAL or local is None or name not in tokens_to_make(workflow):
        return []
    try:
        files = all_files(local, dataset)
    except UserError:
        return []  # the plan is shown all the same: `needs` names what is missing
    if hold_tokens(files):
        return []
    stages = making_steps(files, local.part_bytes)
    return stages if max(map(len, stages)) > FEW_STEPS else []


def all_files(local: LocalDataset, name: str) -> list[Path]:
    """Files of a user's data set in the order of its steps. Raises `UserError` as `files_of`."""
    return [path for key in ("heldout_files", "files") for path in files_of(local, name, key)]


def check_texts(workflow: Workflow) -> None:
    """Raise `UserError` for a user's file that changed since a token set was made of it (`check_unchanged`).

    Token sets that are still to be made are skipped: `needs` checks their files.
    """
    for name, recipe in () if REHEARSAL else workflow.token_sets.items():
        local = workflow.study.datasets.get(recipe.data.dataset)
        folder = RESULTS / "tokens" / name
        if local is None or not (folder / MANIFEST).exists():
            continue
        lent = recipe.borrowed_from is not None or recipe.data.tokenizer == "bpe"
        now = {key: _present(local, recipe.data.dataset, key) for key in ("files", "heldout_files")}
        now["tokenizer"] = [] if lent else _matches(glob.escape(recipe.data.tokenizer))
        check_unchanged(folder, now, text_key=local.text, where=local.where)


def _present(local: LocalDataset, name: str, key: str) -> list[Path]:
    """Those of the files of a key that are there."""
    if local.hub is None:
        return [path for pattern in getattr(local, key) for path in _matches(pattern)]
    return [path for path in noted_files(local, name).get(key, []) if path.exists()]
