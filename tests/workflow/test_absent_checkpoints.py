"""A study whose checkpoint was never here keeps nothing of other studies from being removed."""

from pathlib import Path

import pytest
import yaml
from small_studies import small_study

from upcycle.study.plan import build_plan
from upcycle.workflow.dag import Workflow
from upcycle.workflow.pruning import Retention

TUNED = {"batch": 4, "warmup_steps": 2, "lr": 1e-3, "lr_moe": 1e-3}


@pytest.mark.parametrize(("checkpoint", "goes"), [("nowhere", True), (7, False)], ids=["absent", "wrong"])
def test_keep_beside_a_study_with_a_checkpoint(tmp_path, monkeypatch, checkpoint, goes):
    """What begins with it cannot have begun. A study that cannot be read may need anything."""
    monkeypatch.chdir(tmp_path)
    study = small_study({"dense": {"kind": "dense", "model": "tiny", "steps": 10}}, keep={"weights": "none"})
    content = study.model_dump(mode="json", exclude_defaults=True) | {"study": "mine"}
    content["models"] = {"mine": {"checkpoint": checkpoint, "tokens": 5, **TUNED}}
    content["sweeps"] = {"on": {"kind": "continued", "model": "mine", "steps": 10}}
    Path("config").mkdir()
    Path("config/mine.yaml").write_text(yaml.safe_dump(content))
    workflow = Workflow(study, build_plan(study, Path("results")), Path("results"))
    assert bool(Retention(workflow, tmp_path).let_go) == goes
