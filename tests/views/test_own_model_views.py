"""What is shown of imported and continued runs: no step, no speed, a name of their own."""

from pathlib import Path

import pytest
import yaml
from hf_folders import PIECES, write_folder

from upcycle.study.plan import build_plan
from upcycle.study.study import load_study
from upcycle.views.plan_view import describe_plan, show_plan
from upcycle.views.status import describe_status
from upcycle.workflow.dag import Workflow

STUDY = {
    "study": "default",
    "data": {"dataset": "english", "tokenizer": "mine/tokenizer.json", "vocab_size": PIECES},
    "context": 32,
    "execution": {"device": "cpu"},
    "keep": {"state": "none", "weights": "none"},
    "models": {
        "mine": {"checkpoint": "mine", "tokens": 2e12, "batch": 4, "warmup_steps": 2, "lr": 1e-3, "lr_moe": 1e-3}
    },
    "sweeps": {"on": {"kind": "continued", "model": "mine", "steps": [10, 20]}},
}


@pytest.fixture
def workflow(tmp_path, monkeypatch) -> Workflow:
    monkeypatch.chdir(tmp_path)
    write_folder(Path("mine"))
    Path("config.yaml").write_text(yaml.safe_dump(STUDY))
    study = load_study(Path("config.yaml"))
    return Workflow(study, build_plan(study, Path("results")), Path("results"))


def test_the_plan_counts_what_is_trained_and_not_d1(workflow):
    plan = describe_plan(workflow)
    parent, *others = plan["runs"]
    assert (parent["kind"], parent["tokens"], parent["segment_tokens"], parent["seconds"]) == (
        "import",
        2 * 10**12,
        0,
        0,
    )
    assert {run["kind"] for run in others} == {"cont", "decay"}
    assert plan["total"]["segment_tokens"] == 20 * 4 * 32 + 4 * 32  # the trunk to step 18, decays of 1 and 2 steps
    assert not any("other mixtures" in row["case"] for row in plan["launch"]["extension"])
    shown = show_plan(workflow, as_json=False, every_run=True)
    (line,) = (line for line in shown.splitlines() if line.startswith("import-"))
    assert "0..0" in line
    assert "to import" in line


def test_the_status_of_what_has_not_begun(workflow):
    status = describe_status(workflow)
    (parent,) = (run for run in status["runs"] if run["id"].startswith("import-"))
    assert (parent["state"], parent["step"], parent["end_step"], parent["seconds_left"]) == ("not started", 0, 0, 0)


def test_an_evaluation_has_the_checkpoint_that_its_sweep_begins_with(workflow):
    """Also where two models, of several learning rates, begin with one checkpoint, which is one run."""
    content = dict(STUDY)
    mine = STUDY["models"]["mine"]
    content["models"] = {"mine": mine, "hotter": mine | {"lr": 1e-2}}
    content["sweeps"] = {name: {**STUDY["sweeps"]["on"], "model": name} for name in ("mine", "hotter")}
    content["evaluations"] = {
        name: {"dataset": "english", "version": "1", "sweep": name} for name in ("mine", "hotter")
    }
    Path("config.yaml").write_text(yaml.safe_dump(content))
    study = load_study(Path("config.yaml"))
    evaluated = Workflow(study, build_plan(study, Path("results")), Path("results")).evaluations
    firsts = {name: [run.partition("-")[0] for run, _ in pairs] for name, pairs in evaluated.items()}
    assert firsts == {"mine": ["import", "decay", "decay"], "hotter": ["import", "decay", "decay"]}
