"""Every config of the project can be planned, and what it promises of its size holds."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
from pandas.testing import assert_frame_equal

from upcycle.laws.tables.losses import read_losses
from upcycle.study.check import check_names, find_study, list_studies
from upcycle.study.columns import SPECIFIED
from upcycle.study.parent import AbsentError
from upcycle.study.plan import build_plan
from upcycle.study.spec import RunSpec
from upcycle.study.study import ImportedStudy
from upcycle.study.targets import forecast_runs
from upcycle.workflow.rehearsal import planned_losses

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "reference-2026-11-30"
"""Of `reference-train`."""


@pytest.mark.parametrize("name", ["reference-train", "entropy"])
def test_no_run_of_these_studies_sees_a_token_twice(name, tmp_path):
    training = {"reference-train": 25_429_354, "entropy": 20_289_440}[name]
    runs = build_plan(find_study(name, ROOT), tmp_path).runs.values()
    for run in runs:
        assert not run.data.repeat
        assert run.tokens <= (run.data.stop - run.data.start) * training
        if run.dense_parent:  # the parent reads the other half
            assert (run.data.start, run.data.stop) == (0.5, 1.0)
    parents = {run.dense_parent for run in runs if run.dense_parent}
    assert all(run.data.stop == 0.5 for run in runs if run.id in parents)


def test_the_reference_study_is_as_large_as_its_title_says(tmp_path):
    study = find_study("reference-train", ROOT)
    plan = build_plan(study, tmp_path)
    assert sum(run.segment_tokens for run in plan.runs.values()) == pytest.approx(162e6, rel=0.01)
    [runs] = forecast_runs(study.forecasts, plan).values()
    assert (len(runs.fitted), len(runs.repeated), len(runs.predicted)) == (16, 18, 20)


def test_names_in_all_configs_exist():
    assert {"default", "paper", "reference-train", "entropy"} <= set(list_studies(ROOT))
    for name in list_studies(ROOT):
        with suppress(AbsentError):  # of a study that begins with a checkpoint
            check_names(find_study(name, ROOT))


def test_the_reference_study_is_redrawn_by_its_own_fits_figures_and_tables():
    train, redraw = find_study("reference-train", ROOT), find_study("reference", ROOT)
    assert isinstance(redraw, ImportedStudy)
    assert redraw.fits == train.fits
    assert redraw.tables == train.tables
    assert {**redraw.figures, "figure3": {}} == train.figures
    assert redraw.title == train.title
    assert redraw.losses_from == [str((REFERENCE / "losses.csv").relative_to(ROOT))]
    files = [str((REFERENCE / "forecasts" / f"{name}.json").relative_to(ROOT)) for name in train.forecasts]
    assert redraw.forecasts_from == files


def test_the_committed_losses_are_of_the_runs_that_the_reference_study_plans(tmp_path):
    """Every planned model and no other, by all columns that describe a run."""
    planned = planned_losses(build_plan(find_study("reference-train", ROOT), tmp_path)).set_index("id")
    committed = read_losses(REFERENCE / "losses.csv").set_index("id")
    assert sorted(committed.index) == sorted(planned.index)
    known = ["sweeps", "model", "moe", *(column.name for column in SPECIFIED if column.name in planned)]
    assert {"D1", "D2", "seed", "lr", "settings", "dense_parent"} <= set(known)
    assert_frame_equal(committed[known], planned.loc[committed.index, known], check_dtype=False)
    assert not committed["simulated"].any()


def test_the_committed_specs_are_those_of_the_reference_study(tmp_path):
    planned = build_plan(find_study("reference-train", ROOT), tmp_path).runs
    lines = (REFERENCE / "specs.jsonl").read_text().splitlines()
    committed = {spec.pop("id"): RunSpec.model_validate(spec) for spec in map(json.loads, lines)}
    assert committed == dict(planned)
