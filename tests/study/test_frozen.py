"""The frozen plan: what jobs read is what was planned, whatever happens to the config meanwhile."""

from dataclasses import replace

import pytest
from small_studies import small_study

from upcycle.errors import UserError
from upcycle.study.frozen import FrozenPlan, freeze, thaw
from upcycle.study.plan import build_plan

SWEEP = {"kind": "upcycled", "model": "tiny", "moe": "8x2", "dense_steps": [100, 200], "steps": [100]}


@pytest.fixture
def frozen(tmp_path) -> FrozenPlan:
    study = small_study({"grid": SWEEP})
    return FrozenPlan(study, build_plan(study, tmp_path), {"losses": "0123"})


def test_a_frozen_plan_comes_back_whole(frozen, tmp_path):
    path = freeze(frozen, tmp_path)
    thawed = thaw(path)
    assert thawed == frozen
    assert list(thawed.plan.runs) == list(frozen.plan.runs)
    assert thawed.plan.members("grid") == frozen.plan.members("grid")
    assert freeze(thawed, tmp_path) == freeze(frozen, tmp_path) == path


@pytest.mark.parametrize(("old", "new"), [("}", ""), ('"plan"', '"plane"'), ('"n_layer":2', '"n_layer":3')])
def test_a_damaged_plan_is_refused(frozen, tmp_path, old, new):
    path = freeze(frozen, tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=r"damaged \(its content .* name\); delete it and start Snakemake again"):
        thaw(path)


def test_a_run_that_the_code_names_otherwise_is_refused(frozen, tmp_path):
    """Jobs of an invocation whose code was updated meanwhile: each run is checked when it is asked for."""
    (first, run), *others = frozen.plan.runs.items()
    renamed = replace(frozen.plan, runs={f"{first}0": run, **dict(others)})
    thawed = thaw(freeze(replace(frozen, plan=renamed), tmp_path))
    for run_id, other in others:
        assert thawed.plan.runs[run_id] == other
    with pytest.raises(UserError, match=f"run {first}0 is now named {first}"):
        thawed.plan.runs[f"{first}0"]
