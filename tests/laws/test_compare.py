"""How sure a comparison of two laws is, and whether the better one fits."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import f as fisher

from upcycle.laws.certificate.validate import SeedNoise
from upcycle.laws.compare import error_ratio, lack_of_fit
from upcycle.laws.fit import run_fit
from upcycle.laws.result import read_fit
from upcycle.paper.inputs import Inputs

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "default-2026-11-22" / "losses.csv"
ROWS = np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], 5)


def test_equal_errors_have_a_ratio_of_one_and_no_width():
    error_N = np.random.default_rng(0).normal(size=25)
    same = error_ratio(error_N, -error_N, ROWS)
    assert (same.ratio, same.by_points, same.by_groups) == (1.0, (1.0, 1.0), (1.0, 1.0))
    assert not same.clear
    twice = error_ratio(2 * error_N, error_N, ROWS)
    assert twice.ratio == pytest.approx(2)
    assert twice.by_points == pytest.approx((2, 2))
    assert twice.clear


def test_independent_errors_of_one_size_are_told_apart_in_about_one_case_of_twenty():
    """The interval of 25 points is a little narrow, as bootstraps of few points are."""
    rng = np.random.default_rng(1)
    apart = 0
    for seed in range(60):
        low, high = error_ratio(rng.normal(size=25), rng.normal(size=25), ROWS, seed=seed).by_points
        apart += not low <= 1 <= high
    assert apart <= 9


def test_errors_alike_within_rows_need_whole_rows():
    rng = np.random.default_rng(2)
    alike_N = np.repeat(rng.normal(size=5), 5)
    ratio = error_ratio(alike_N, np.full(25, 1.0), ROWS)
    assert ratio.by_groups[1] - ratio.by_groups[0] > 1.5 * (ratio.by_points[1] - ratio.by_points[0])
    assert error_ratio(alike_N, alike_N, np.repeat([1.0, 2.0], [10, 15])).by_groups is None


def test_lack_of_fit_is_fishers_test_of_two_variances():
    residual_N = np.full(25, 0.02)
    test = lack_of_fit(residual_N, 5, SeedNoise(0.01, 6, 3))
    assert pytest.approx(25 / 20 * 4) == test.F
    assert test.freedom == (20, 6)
    assert test.p == pytest.approx(1 - fisher.cdf(5.0, 20, 6))
    assert lack_of_fit(residual_N, 25, SeedNoise(0.01, 6, 3)) is None


def test_a_true_law_is_rejected_in_one_case_of_twenty():
    rng = np.random.default_rng(3)
    rejected = 0
    for _ in range(2000):
        noise = SeedNoise(float(np.sqrt((rng.normal(size=6) ** 2).mean())), 6, 3)
        rejected += lack_of_fit(rng.normal(size=20), 0, noise).p < 0.05
    assert 70 <= rejected <= 130


@pytest.mark.slow
def test_the_numbers_that_the_readme_states(tmp_path):
    """Interaction against none, and lack of fit, of the committed losses of the default sweep."""
    names = ("multiplicative", "multiplicative_no_interaction", "multiplicative_offset")
    for law in names:
        run_fit(REFERENCE, law=law, select={"sweep": "upcycled"}, out=tmp_path / f"{law}.json")
    inputs = Inputs.read(REFERENCE, tmp_path, tmp_path)
    plain, none, offset = (read_fit(tmp_path / f"{law}.json") for law in names)
    ratio = inputs.error_ratio(none, plain)
    assert ratio.ratio == pytest.approx(1.30, abs=0.01)
    assert ratio.by_points == pytest.approx((0.87, 1.66), abs=0.03)
    assert ratio.by_groups == pytest.approx((1.19, 1.56), abs=0.03)
    assert not ratio.clear
    tests = [inputs.lack_of_fit(fit) for fit in (plain, none, offset)]
    assert [test.freedom for test in tests] == [(20, 6), (21, 6), (19, 6)]
    assert [test.F for test in tests] == pytest.approx([15.9, 40.4, 2.7], rel=0.03)
    assert tests[0].p < 0.005 < 0.05 < tests[2].p
