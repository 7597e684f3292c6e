"""Checks before anything starts: text and tokenizers of token sets to be made, checkpoints to start from.

Only what unfinished work needs: a finished study is read, and drawn again, on a machine without text and tokens.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from upcycle.data.benchmarks import own_documents
from upcycle.data.local import check_files, hold_tokens
from upcycle.data.versions import full_version, recipe_version
from upcycle.data.vocabulary import check_tokenizer, check_vocab_size
from upcycle.errors import UserError
from upcycle.files import given_path
from upcycle.manifest import WEIGHTS, read_manifest
from upcycle.study.recorded import check_trained, has_begun
from upcycle.study.spec import DataConfig
from upcycle.study.texts import LocalDataset
from upcycle.workflow.dag import TokenRecipe, Workflow
from upcycle.workflow.paths import REHEARSAL, RESULTS, metrics_path, on_disk
from upcycle.workflow.pruning import check_kept_for, check_start
from upcycle.workflow.texts import all_files, files_of, tokens_to_make


def check_needs(workflow: Workflow) -> None:
    """Raise `UserError` for the first thing missing that unfinished work needs, with a count of the others."""
    sets = workflow.token_sets
    checks: list[Callable[[], None]] = [
        partial(check_source, workflow, sets[name]) for name in tokens_to_make(workflow)
    ]
    checks += [partial(check_parent, workflow, run_id) for run_id in workflow.plan.runs]
    checks += [partial(check_trackers, workflow, run_id) for run_id in workflow.plan.runs]
    checks += [
        partial(check_evaluated, workflow, run_id, name)
        for name, pairs in workflow.evaluations.items()
        for run_id, path in pairs
        if path in workflow.stale_evaluations
    ]
    checks += [
        partial(check_scored, workflow, run_id, name, task)
        for name, asked in workflow.benchmarks.items()
        for run_id, task, path in asked
        if path in workflow.stale_benchmarks
    ]
    problems: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except UserError as error:
            problems[str(error)] = None
    if problems:
        first, more = next(iter(problems)), len(problems) - 1
        raise UserError(first + (f" (and {more} more {'is' if more == 1 else 'are'} missing or wrong)" if more else ""))


def check_source(workflow: Workflow, recipe: TokenRecipe) -> None:
    """Raise `UserError` naming the key and the file where text or tokenizer of a token set cannot be used."""
    if REHEARSAL:
        return  # nothing is tokenised
    data = recipe.data
    local = workflow.study.datasets.get(data.dataset)
    if local is None:
        check_version(data)
    else:
        for key in ("files", "heldout_files"):
            for path in check_files(files_of(local, data.dataset, key)):
                if not os.access(path, os.R_OK):
                    where = f"datasets.{data.dataset}.{key}"
                    raise UserError(f"{where}: {path} cannot be read; allow it, or name another file")
        if hold_tokens(all_files(local, data.dataset)):
            _check_tokens(recipe, local)
    if recipe.borrowed_from is not None:
        return
    if data.tokenizer == "bpe":
        check_vocab_size(data.vocab_size)
    else:
        check_tokenizer(given_path(data.tokenizer), data.vocab_size)


def check_version(data: DataConfig) -> None:
    """Raise `UserError` where the text of a built-in data set is not here in this version: Python's own is another."""
    if full_version(data.dataset, recipe_version(data.dataset, data.version)) != data.version:
        raise UserError(
            f"data.version {data.version}: the source of `{data.dataset}` here makes version "
            f"{full_version(data.dataset, recipe_version(data.dataset, data.version))}; use the machine or the "
            "environment that has the other one, or leave `version` out, which makes other runs"
        )


def _check_tokens(recipe: TokenRecipe, local: LocalDataset) -> None:
    """UserError for a setting that tokens of Megatron-LM cannot follow."""
    data, key = recipe.data, f"datasets.{recipe.data.dataset}"
    if not local.heldout_files:
        raise UserError(f"{key}.heldout_files: name files of tokens; none are split off `files`")
    if recipe.borrowed_from is not None or data.tokenizer == "bpe":
        raise UserError(f"{key}: is tokens, cut already; name their tokenizer.json under `data.tokenizer`")
    if data.decontaminate:
        raise UserError(f"{key}: is tokens, of which no text can be removed; set `data.decontaminate: false`")
    if local.where:
        raise UserError(f"{key}.where: tokens have no columns; leave it out")


def check_parent(workflow: Workflow, run_id: str) -> None:
    """Raise `UserError` naming the file if a run that has not begun cannot start from its finished parent, or its
    checkpoint.
    """
    run = workflow.plan.runs[run_id]
    if run.role == "imported" and not REHEARSAL and not on_disk(metrics_path(run_id)):
        folder = workflow.checkpoint_of(run_id)
        if not folder.exists():
            raise UserError(f"{folder}: no such folder, and {run_id} is still to be imported from it; restore it")
    if REHEARSAL or run.parent is None or not on_disk(metrics_path(run.parent)) or has_begun(RESULTS / "runs" / run_id):
        return
    check_start(workflow.plan, run)
    for parent, names in workflow.plan.reads(run).items():
        if parent == run.parent or on_disk(metrics_path(parent)):
            _check_files(run_id, parent, names)


def _check_files(run_id: str, parent: str, names: tuple[str, ...]) -> None:
    """Raise `UserError` naming the file if a finished run has not the files from which another starts."""
    folder = RESULTS / "runs" / parent
    check_trained(folder)
    files = read_manifest(folder)["files"]
    for name in names:
        path = folder / name
        found = path.stat().st_size if path.exists() else None
        if name not in files or found != files[name]["bytes"]:
            how = "is missing" if found is None else f"has {found:,} bytes, which is not what was written"
            raise UserError(
                f"{path} {how}, and {run_id} starts from it; restore it from a copy, or train that run again: "
                f"`upcycle train {parent} --fresh`"
            )


def check_trackers(workflow: Workflow, run_id: str) -> None:
    """Raise `UserError` if a run that is to be trained has a tracker whose library is not installed."""
    if workflow.study.execution.trackers and not REHEARSAL and not on_disk(metrics_path(run_id)):
        workflow.study.execution.check_trackers()


def check_evaluated(workflow: Workflow, run_id: str, name: str) -> None:
    """Raise `UserError` if the weights that an evaluation is to read were removed."""
    check_kept_for(workflow.plan, f"evaluation `{name}`", run_id, WEIGHTS)


def check_scored(workflow: Workflow, run_id: str, name: str, task: str) -> None:
    """Raise `UserError` if the weights that a benchmark is to read were removed, or a user's documents are wrong."""
    check_kept_for(workflow.plan, f"benchmark `{name}`", run_id, WEIGHTS)
    if own := workflow.study.benchmarks[name].own(task):
        _check_documents(f"benchmarks.{name}.documents.{task}", task, own)


@cache
def _check_documents(key: str, task: str, path: Path) -> None:
    """Once for all runs."""
    try:
        own_documents(task, path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
