"""Training through changes of the estimate that says where a trunk is cut: no step twice, and the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from preempted import preempted_at
from small_runs import VOCABULARY, rows_of, tensors_sha256

from upcycle.study.counting import flops_per_token
from upcycle.study.shape import ModelSpec
from upcycle.study.spec import RunSpec
from upcycle.workflow.dag import Workflow
from upcycle.workflow.invocation import read_workflow
from upcycle.workflow.jobs import train_job
from upcycle.workflow.paths import RESULTS

MODEL = {"n_layer": 1, "d_model": 16, "n_head": 2}
STEPS = 60
BRANCH = 54


class Study:
    """A study of one dense model in the working folder, its trunk cut to segments of `longest` steps."""

    def __init__(self, folder: Path, tokens_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        monkeypatch.chdir(folder)
        (folder / RESULTS / "tokens").mkdir(parents=True)
        (folder / RESULTS / "tokens" / f"walk-1-bpe{VOCABULARY}").symlink_to(tokens_dir)

    def plan(self, longest: int, steps: int | list[int] = STEPS) -> Workflow:
        model = ModelSpec(**MODEL, vocab_size=VOCABULARY, context=32)
        rate = (longest + 0.5) * flops_per_token(model) * 4 * 32 / 3600
        execution = {"device": "cpu", "log_steps": 1, "max_segment_hours": 1, "flops_per_second": rate}
        config: dict[str, Any] = {
            "study": "default",
            "data": {"dataset": "walk", "vocab_size": VOCABULARY, "repeat": True},
            "datasets": {"walk": {"files": "walk.txt"}},
            "context": 32,
            "execution": execution,
            "models": {"tiny": MODEL | {"batch": 4, "warmup_steps": 2, "lr": 1e-2, "lr_moe": 1e-2}},
            "sweeps": {"dense": {"kind": "dense", "model": "tiny", "steps": steps}},
        }
        Path("config.yaml").write_text(yaml.safe_dump(config))
        return read_workflow(None, Path.cwd())

    def finish(self, workflow: Workflow) -> list[RunSpec]:
        """Train all that is not finished, parents first; the runs that this finished."""
        new = [run for run in workflow.plan.runs.values() if not (folder_of(run) / "metrics.json").exists()]
        for run in new:
            train_job(workflow, run.id)
        return new


def folder_of(run: RunSpec) -> Path:
    return RESULTS / "runs" / run.id


def losses(runs: list[RunSpec]) -> list[dict[str, Any]]:
    """Rows of updates in the order in which the runs were trained."""
    return [row for run in runs for row in rows_of(folder_of(run)) if "loss" in row]


@pytest.fixture
def study(tmp_path: Path, tokens_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return Study(tmp_path / "study", tokens_dir, monkeypatch)


@pytest.fixture
def undisturbed(
    tmp_path: Path, tokens_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """Rows of a chain that nothing disturbed, and the tensors of its needed runs."""
    with monkeypatch.context() as patch:
        study = Study(tmp_path / "undisturbed", tokens_dir, patch)
        runs = study.finish(study.plan(15))
        assert [run.end_step for run in runs] == [15, 30, 45, BRANCH, STEPS]
        return losses(runs), {run.id: tensors_sha256(folder_of(run)) for run in runs[-2:]}


@pytest.mark.parametrize(("longest", "ends"), [(9, [15, 30, 39, 48, BRANCH]), (100, [15, 30, BRANCH])])
def test_a_trunk_goes_on_through_a_change_of_its_estimate(
    study: Study,
    undisturbed: tuple[list[dict[str, Any]], dict[str, dict[str, str]]],
    longest: int,
    ends: list[int],
) -> None:
    """Stopped within its second segment: that is finished, each step is in one curve, and the bits are the same."""
    before = study.plan(15)
    first, second, *_ = before.plan.runs.values()
    train_job(before, first.id)
    with preempted_at(22):
        train_job(before, second.id)
    after = study.plan(longest)
    study.finish(after)
    runs = list(after.plan.runs.values())
    assert [run.end_step for run in runs] == [*ends, STEPS]
    assert [row["step"] for row in losses(runs)] == list(range(1, STEPS + 1))
    rows, tensors = undisturbed
    assert losses(runs) == rows
    assert {run.id: tensors_sha256(folder_of(run)) for run in runs[-2:]} == tensors
    assert [json.loads((folder_of(run) / "metrics.json").read_text())["resumed"] for run in runs[:2]] == [0, 1]

    assert study.finish(study.plan(4)) == []
    new = study.finish(study.plan(20, steps=[30, STEPS, 80]))
    trained = [(run.start_step, run.end_step) for run in new]
    assert sorted(trained) == [(ends[1] if ends[1] <= 27 else 15, 27), (27, 30), (BRANCH, 72), (72, 80)]


def test_a_beginning_that_left_no_state_is_cut_anew(
    study: Study, undisturbed: tuple[list[dict[str, Any]], Any]
) -> None:
    """Killed before its first state, then planned shorter: it starts at the new cut, with rows of that start only."""
    long = study.plan(100).plan.runs
    run = next(iter(long.values()))
    train_job(study.plan(100), run.id)
    for path in folder_of(run).iterdir():  # as a kill leaves it
        if path.name not in ("spec.json", "metrics.jsonl", "lease"):
            path.unlink()
    after = study.plan(30)
    study.finish(after)
    runs = list(after.plan.runs.values())
    assert [run.end_step for run in runs] == [30, BRANCH, STEPS]
    assert losses(runs) == undisturbed[0]
