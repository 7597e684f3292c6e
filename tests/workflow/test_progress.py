"""A line a job that ends, from the events that Snakemake sends; its own lines for the same are held back."""

import json
import logging
from pathlib import Path

import pytest
from small_studies import dense_study

from upcycle.study.plan import build_plan
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import RESULTS, metrics_path
from upcycle.workflow.progress import Progress, clock, tell_progress


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    monkeypatch.chdir(tmp_path)
    study = dense_study([400, 1000])
    return Workflow(study, build_plan(study, RESULTS), RESULTS)


ON_CPU = {"device": "cpu", "devices": 1}


def finish(run_id: str, loss: float) -> None:
    """As a trunk point, of which only the curve has a held-out loss."""
    path = Path(metrics_path(run_id))
    path.parent.mkdir(parents=True)
    times = {"segment_tokens": 2048, "train_seconds": 1.0, "wall_seconds": 1.0}
    path.write_text(json.dumps({"loss": None, "curve_heldout": [[0, 9.0], [2048, loss]], "execution": ON_CPU} | times))


def send(logger: logging.Logger, job: int, outputs: list[str], message: str | None) -> None:
    about = {"event": "job_info", "jobid": job, "output": outputs, "rule_msg": message}
    logger.info("rule", extra=about)
    logger.info("Finished jobid", extra={"event": "job_finished", "job_id": job})
    logger.info(None, extra={"event": "progress", "done": 1, "total": 2})


def test_a_run_has_its_name_and_loss_and_runs_of_before_count(workflow, capsys):
    first, second, *_ = workflow.plan.runs
    finish(first, 5.0)
    logger = logging.Logger("snakemake.logging")
    logger.addHandler(Progress(workflow, lambda: ([], 1)))
    logger.info("Execute 1 jobs...", extra={"event": "job_started", "jobs": [1]})
    logger.info("job", extra={"event": "job_info", "jobid": 1, "output": ["results/losses.csv"], "rule_msg": "Gather"})
    logger.info("Finished", extra={"event": "job_finished", "job_id": 1})
    finish(second, 4.25)
    send(logger, 2, [metrics_path(second)], "Train")
    send(logger, 3, [], None)
    gathered, trained = capsys.readouterr().err.splitlines()
    assert gathered.split() == ["Gather", "0:00"]
    assert trained.split("  ")[0] == "2/4"
    assert "  loss 4.250  0:00" in trained
    assert gathered.index("0:00") == trained.index("0:00")


def test_snakemakes_own_lines_are_held_back_and_errors_are_not(workflow, tmp_path, capsys):
    logger = logging.Logger("snakemake.logging")
    logger.addHandler(logging.StreamHandler())
    logger.addHandler(logging.FileHandler(tmp_path / "log"))
    tell_progress(logger, workflow, lambda: ([], 1))
    logger.info("Select jobs to execute...")
    logger.info("Execute 3 jobs...", extra={"event": "job_started", "jobs": [1]})
    send(logger, 1, [], None)
    logger.info("Job 3 has been submitted with SLURM jobid 17 (log: x).")
    logger.error("RuleException", extra={"event": "error", "exception": "RuleException"})
    logger.info("Nothing to be done")
    assert capsys.readouterr().err.splitlines() == ["rule", "RuleException", "Nothing to be done"]
    assert len((tmp_path / "log").read_text().splitlines()) == 8


def test_the_whole_time_is_that_passed_and_the_makespan_of_what_is_left(workflow, capsys):
    """Four runs at the measured speed of the first: 1,000 tokens a second, and a second beside training."""
    first, second, *rest = workflow.plan.runs
    for run_id in (first, second):
        finish(run_id, 5.0)
        run = workflow.plan.runs[run_id]
        path = Path(metrics_path(run_id))
        times = {"train_seconds": run.segment_tokens / 1000, "wall_seconds": run.segment_tokens / 1000 + 1}
        path.write_text(json.dumps(json.loads(path.read_text()) | times | {"segment_tokens": run.segment_tokens}))
    progress = Progress(workflow, lambda: (list(map(metrics_path, rest)), 1))
    logger = logging.Logger("snakemake.logging")
    logger.addHandler(progress)
    logger.info("Execute 1 jobs...", extra={"event": "job_started", "jobs": [1]})
    send(logger, 1, [metrics_path(second)], "Train")
    left = sum(workflow.plan.runs[run_id].segment_tokens / 1000 + 1 for run_id in rest)
    assert progress.estimate == pytest.approx(left, abs=1)
    assert f"0:00 of ~{round(left / 60)} min" in capsys.readouterr().err


def test_a_rehearsal_s_time_is_that_of_the_runs_at_their_pace(workflow, capsys):
    """Three of four runs are made in 30 seconds: 40 in all. What a run's training would take is of no interest."""
    first, *rest = workflow.plan.runs
    for run_id in (first, *rest[:-1]):
        path = Path(metrics_path(run_id))
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"simulated": True, "loss": None if run_id == first else 4.25}))
    progress = Progress(workflow, lambda: ([metrics_path(rest[-1])], 1))
    progress._labels = dict.fromkeys(workflow.plan.runs, "a run")
    logger = logging.Logger("snakemake.logging")
    logger.addHandler(progress)
    send(logger, 1, [metrics_path(first)], "Train")
    assert "of ~" not in (before := capsys.readouterr().err)
    progress.finished |= set(rest[:-2])
    progress.started -= 30
    send(logger, 2, [metrics_path(rest[-2])], "Train")
    assert "  simulated 4.250  0:30 of ~40 s" in (line := capsys.readouterr().err)
    assert before.index("0:00") == line.index("0:30")


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (130.9, "2:10"), (3730, "1:02:10"), (360_000, "100:00:00")])
def test_the_clock(seconds, text):
    assert clock(seconds) == text
