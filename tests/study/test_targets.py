"""Which runs a forecast reads, predicts and holds back."""

from pathlib import Path

import pytest
from small_studies import small_study

from upcycle.errors import UserError
from upcycle.study.check import check_names
from upcycle.study.plan import build_plan
from upcycle.study.targets import forecast_runs

STEP = 8 * 256
SWEEPS = {
    "dense": {"kind": "dense", "model": "tiny", "steps": [20, 40]},
    "upcycled": {"kind": "upcycled", "model": "tiny", "moe": "8x2", "dense_steps": [20, 40, 80], "steps": [20, 40]},
}
SMALL = {"sweep": "upcycled", "laws": "additive", "up_to": {"D1": 40 * STEP, "D2": 20 * STEP}}


def planned(nowhere: Path, **forecasts):
    study = small_study(SWEEPS, forecasts=forecasts)
    plan = build_plan(study, nowhere)
    return plan, forecast_runs(study.forecasts, plan)


def test_what_only_larger_runs_need_waits_and_what_smaller_ones_share_does_not(tmp_path):
    plan, found = planned(tmp_path, small=SMALL)
    runs = found["small"]

    def budgets(ids):
        return {(plan.runs[run_id].dense_tokens // STEP, plan.runs[run_id].tokens // STEP) for run_id in ids}

    assert budgets(runs.fitted) == {(20, 20), (40, 20)}
    assert budgets(runs.predicted) == {(20, 40), (40, 40), (80, 20), (80, 40)}
    held_back = runs.waiting - set(runs.predicted)
    # Trunks of D1 = 20 and 40 beyond the decay to 20 (18 steps), all of D1 = 80, and its parent, which no sweep has.
    assert budgets(held_back) == {(20, 36), (40, 36), (80, 18), (80, 36), (0, 72), (0, 80)}
    small = plan.with_ancestors([*runs.fitted, *plan.sweeps["dense"]])
    assert runs.waiting.isdisjoint(small)
    assert runs.waiting | small == set(plan.runs)


@pytest.mark.parametrize(
    ("up_to", "message"),
    [
        ({"D1": 1}, r"forecasts\.small\.up_to: sweep `upcycled` has no run to fit laws to, as 0 of its 6 runs have D1"),
        ({"D2": 10**9}, r"sweep `upcycled` has no run to predict, as 6 of its 6 runs have D2 <= 1,000,000,000"),
    ],
)
def test_a_forecast_has_runs_on_both_sides(tmp_path, up_to, message):
    with pytest.raises(UserError, match=message):
        planned(tmp_path, small=SMALL | {"up_to": up_to})


def test_forecasts_that_wait_for_each_other_are_refused_and_stages_are_not(tmp_path):
    first, second = SMALL | {"up_to": {"D1": 40 * STEP}}, SMALL | {"up_to": {"D2": 20 * STEP}}
    with pytest.raises(UserError, match=r"forecasts\.a and forecasts\.b wait for each other"):
        planned(tmp_path, a=first, b=second)
    planned(tmp_path, a=SMALL, b=first)


def test_names_are_checked(tmp_path):
    for change, message in (
        ({"sweep": "upcicled"}, r"forecasts\.f\.sweep: `upcicled` is not under `sweeps`; did you mean `upcycled`"),
        ({"seeds": ["seeds"]}, r"forecasts\.f\.seeds: `seeds` is not under `sweeps`"),
    ):
        with pytest.raises(ValueError, match=message):
            small_study(SWEEPS, forecasts={"f": SMALL | change})
    with pytest.raises(UserError, match=r"forecasts\.f\.laws\.law: unknown law `multiplicativ`"):
        check_names(small_study(SWEEPS, forecasts={"f": SMALL | {"laws": ["multiplicativ"]}}))
    with pytest.raises(UserError, match=r"tables\.forecasts: it scores `forecasts`, and the study has none"):
        check_names(small_study(SWEEPS, tables={"forecasts": {}}))
