"""`upcycle status --watch` and what status says of causes and SLURM jobs, on folders and a queue as they may be."""

import json
from pathlib import Path

import pytest
from rich.console import Console
from small_studies import dense_study

from upcycle.errors import UserError
from upcycle.study.plan import build_plan
from upcycle.views import status as module
from upcycle.views.status import describe_status, show_status
from upcycle.views.watch import Watch, watch
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import RESULTS
from upcycle.workflow.slurm_jobs import SlurmJob


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workflow:
    monkeypatch.chdir(tmp_path)
    study = dense_study([400, 1000])
    return Workflow(study, build_plan(study, RESULTS), RESULTS)


def job(run_id: str, number: str, nodes: str = "") -> SlurmJob:
    state = "RUNNING" if nodes else "PENDING"
    comment = f"rule_pretrain_dense_wildcards_{run_id}"
    return SlurmJob(number, state, "test", comment, nodes, "Priority", "0:10", "1:00:00")


def log(run_id: str, words: str) -> None:
    path = RESULTS / "logs/train" / f"{run_id}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"step 1 of 9\n{words}\n")


def state(workflow: Workflow, run_id: str, *jobs: SlurmJob) -> tuple[str, str]:
    found = next(run for run in describe_status(workflow, jobs)["runs"] if run["id"] == run_id)
    return found["state"], found["note"]


def test_a_failed_run_has_its_cause_and_a_stopped_one_goes_on(workflow):
    run_id = next(iter(workflow.plan.runs))
    assert state(workflow, run_id) == ("not started", "")
    log(run_id, "step 2 of 9")
    assert state(workflow, run_id) == ("not started", "")
    log(run_id, f"upcycle train: {run_id}: step 2: loss nan. Lower optim.lr")
    assert state(workflow, run_id) == ("failed", "step 2: loss nan. Lower optim.lr")
    log(run_id, f"upcycle train: {run_id}: stopped by SIGTERM after step 9; the same command continues")
    assert state(workflow, run_id)[0] == "stopped"


def test_a_run_that_waits_in_the_queue_says_for_what(workflow):
    first, second, *_ = workflow.plan.runs
    waiting, begun = job(first, "17"), job(second, "18", nodes="node3")
    assert state(workflow, first, waiting) == ("queued", "SLURM job 17 waits: Priority")
    log(first, f"upcycle train: {first}: no space left")
    assert state(workflow, first, waiting) == ("queued", "SLURM job 17 waits: Priority; no space left")
    assert state(workflow, second, begun) == ("not started", "SLURM job 18 on node3, 1:00:00 of its time left")


def test_orphaned_jobs_are_listed_and_a_silent_slurm_is_said(workflow, monkeypatch):
    first = next(iter(workflow.plan.runs))
    monkeypatch.setattr(module, "slurm_jobs", lambda _: [job(first, "17")])
    text = show_status(workflow, as_json=False, every_run=False)
    assert "SLURM jobs that no Snakemake looks after" in text
    assert f"  17 pretrain_dense {first} PENDING (waits: Priority)" in text

    def silent(_: Path) -> None:
        raise UserError("squeue: no answer within 60 s")

    monkeypatch.setattr(module, "slurm_jobs", silent)
    assert "SLURM does not answer" in show_status(workflow, as_json=False, every_run=False).splitlines()[-1]
    assert json.loads(show_status(workflow, as_json=True, every_run=False))["total"]["runs"] == 4


@pytest.mark.parametrize(("width", "height"), [(110, 24), (60, 14)])
def test_the_screen_has_counts_and_causes_and_fits(workflow, monkeypatch, width, height):
    runs = list(workflow.plan.runs)
    monkeypatch.setattr(module, "slurm_jobs", lambda _: [job(runs[1], "17")])
    log(runs[0], f"upcycle train: {runs[0]}: step 2: loss nan. " + "Lower optim.lr " * 20)
    console = Console(width=width, height=height, record=True, file=Path("screen").open("w"))  # noqa: SIM115
    screen, done = Watch(workflow, Path.cwd()).look(height)
    console.print(screen)
    lines = console.export_text().splitlines()
    assert not done
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "0/4 runs" in lines[2]
    assert lines[3].split("  ") == ["1 failed", "1 queued", "2 not started"]
    causes = [line for line in lines if line.startswith("dense") and " failed " in line]
    assert len(causes) == 1
    assert width < 80 or "loss nan" in causes[0]
    assert any(" queued " in line for line in lines)
    assert any(line.lstrip().startswith("17 pretrain_dense") for line in lines)


def test_without_a_terminal_it_says_what_to_call(workflow):
    with pytest.raises(UserError, match="--watch needs a terminal"):
        watch(workflow, Path.cwd())
