"""Paths under results/: one function for each kind."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from upcycle.data.parts import WORK
from upcycle.study.benchmark import BenchmarkConfig
from upcycle.study.imported import forecast_files
from upcycle.study.spec import RunSpec
from upcycle.study.study import EvaluationConfig, StudyConfig
from upcycle.workflow.rehearsed import rehearsal_now

REHEARSAL = rehearsal_now()
"""The rehearsal that this process is a part of, or None."""
RESULTS = REHEARSAL.folder if REHEARSAL else Path("results")
"""Where runs, tokens and products are; a rehearsal has all of them for itself."""


def on_disk(path: str) -> bool:
    """Whether a file is there."""
    return os.path.exists(path)  # noqa: PTH110 - asked of every file of a study, and a Path costs ten times as much


def metrics_path(run_id: str) -> str:
    """The file whose presence means that a run is finished."""
    return f"{RESULTS}/runs/{run_id}/metrics.json"


def tokens_path(tokens_id: str) -> str:
    """The manifest of a token set."""
    return str(RESULTS / "tokens" / tokens_id / "manifest.json")


def step_path(tokens_id: str, step: str) -> str:
    """The record of a step of making a token set."""
    return str(RESULTS / "tokens" / tokens_id / WORK / f"{step}.json")


def evaluation_path(run_id: str, evaluation: EvaluationConfig) -> str:
    """Result of a run's evaluation on another text, named by that text, because studies share runs but not names."""
    name = f"{evaluation.dataset}-{evaluation.version}-{evaluation.max_tokens}.json"
    return str(RESULTS / "runs" / run_id / "evaluations" / name)


def benchmark_path(run_id: str, benchmark: BenchmarkConfig, task: str) -> str:
    """Scores of a run on a task, named by which of its documents are asked; a user's, by their path."""
    drawn = "all" if benchmark.limit is None else f"{benchmark.limit}-{benchmark.seed}"
    if own := benchmark.documents.get(task):
        drawn = f"{hashlib.sha256(own.encode()).hexdigest()[:8]}-{drawn}"
    return str(RESULTS / "runs" / run_id / "benchmarks" / f"{task}-{drawn}.json")


def forecast_path(out: Path, name: str) -> str:
    """A forecast of the study whose folder is `out`: its presence lets the runs train that it predicts."""
    return str(out / "forecasts" / f"{name}.json")


def forecasts_of(study: StudyConfig, out: Path) -> dict[str, Path]:
    """Files of the forecasts that a study registers, or takes from files, by name."""
    return forecast_files(study) or {name: Path(forecast_path(out, name)) for name in study.forecasts}


def evaluation_tokens_id(run: RunSpec, evaluation: EvaluationConfig) -> str:
    """Token set of an evaluation: its text, cut by the run's own tokenizer."""
    return f"{evaluation.dataset}-{evaluation.version}-as-{run.data.tokens_id}"


def pruned_path(run_id: str, files: Iterable[str]) -> str:
    """Marker of the removal of these files of a run (`workflow.pruning`); what was removed is in the manifest."""
    return str(RESULTS / ".pruned" / run_id / "+".join(sorted(name.partition(".")[0] for name in files)))


def output_folder(name: str) -> Path:
    """results/ for the default study, results/<study>/ for any other; runs and tokens are shared."""
    return RESULTS if name == "default" or REHEARSAL else RESULTS / name
