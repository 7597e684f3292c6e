"""Every config of the project can be planned, and what it promises of its size holds."""

from contextlib import suppress
from pathlib import Path

import pytest

from upcycle.study.check import check_names, find_study, list_studies
from upcycle.study.parent import AbsentError
from upcycle.study.plan import build_plan
from upcycle.study.targets import forecast_runs

ROOT = Path(__file__).parents[2]


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
