"""What the Snakefile asks for, and what it costs: nothing that grows with the study for one job of it."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from small_studies import small_study

from upcycle.errors import UserError
from upcycle.study.frozen import FrozenPlan, freeze, thaw
from upcycle.study.plan import build_plan
from upcycle.workflow import dag
from upcycle.workflow.dag import Workflow
from upcycle.workflow.needs import check_parent
from upcycle.workflow.paths import metrics_path
from upcycle.workflow.submission import RULE_OF_KIND

SWEEPS = {
    "moe": {"kind": "moe", "model": "tiny", "moe": "8x2", "steps": [100, 200]},
    "grid": {"kind": "upcycled", "model": "tiny", "moe": "8x2", "dense_steps": [100, 200], "steps": [100, 200]},
}


@pytest.fixture
def planned(tmp_path, monkeypatch) -> Workflow:
    monkeypatch.chdir(tmp_path)
    study = small_study(SWEEPS, fits={"multiplicative": {"law": "multiplicative", "sweep": "grid"}})
    return Workflow(study, build_plan(study, Path("results")), Path("results/test"))


def test_a_rule_takes_the_runs_of_its_kind_by_their_first_word(planned):
    """Snakemake tries the patterns on every file, so they list no ids; orphans are plain files."""
    kinds = tuple(RULE_OF_KIND)
    for run_id, run in planned.plan.runs.items():
        assert [kind for kind in kinds if re.fullmatch(planned.runs_of(kind), run_id)] == [run.kind]
    assert sum(len(planned.runs_of(kind)) for kind in kinds) < 150
    orphan, other = [run_id for run_id, run in planned.plan.runs.items() if run.kind == "decay"][:2]
    alone = replace(planned, plan=replace(planned.plan, orphans=[orphan]))
    path = re.compile(rf"runs/(?P<run>{alone.runs_of('decay')})/metrics\.json")
    assert path.fullmatch(f"runs/{other}/metrics.json")
    assert path.fullmatch(f"runs/{orphan}0/metrics.json")
    assert not path.fullmatch(f"runs/{orphan}/metrics.json")


def test_a_training_job_asks_for_no_product_and_for_its_own_run_alone(planned, monkeypatch):
    """The parse that each job of a cluster repeats."""
    path = freeze(FrozenPlan(planned.study, planned.plan, {"losses": "key"}), Path("results"))
    thawed = thaw(path)
    job = Workflow(thawed.study, thawed.plan, planned.out, frozen_keys=thawed.keys)
    asked: list[str] = []
    known = type(thawed.plan.runs).__getitem__
    monkeypatch.setattr(
        type(thawed.plan.runs), "__getitem__", lambda runs, name: asked.append(name) or known(runs, name)
    )
    monkeypatch.setattr(dag, "list_products", lambda workflow: pytest.fail("products are listed"))
    run_id = next(run_id for run_id, run in planned.plan.runs.items() if run.kind == "decay")
    for kind in RULE_OF_KIND:
        job.runs_of(kind)
    job.check_planned(run_id)
    check_parent(job, run_id)
    assert job.tokens_of(run_id) == planned.tokens_of(run_id)
    assert job.parent_of(run_id) == planned.parent_of(run_id)
    assert job.may_be_made(metrics_path(run_id))
    assert set(asked) == {run_id}


def test_jobs_take_the_keys_of_products_from_the_invocation(planned):
    """Parsing no source; a job whose code was edited meanwhile records the old key, and the next parse sees it."""
    job = replace(planned, frozen_keys={"losses": "frozen", "fits/multiplicative": "too"})
    assert job.products["losses"].key == "frozen"
    assert planned.products["losses"].key != "frozen"
    assert job.products["losses"].files == planned.products["losses"].files


def test_a_run_that_is_not_planned_is_named(planned):
    with pytest.raises(UserError, match="study `test` plans no run `dense-nothing`"):
        planned.check_planned("dense-nothing")
