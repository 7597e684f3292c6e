"""Huber's loss as a likelihood: its normalisation, scale and criteria; profiles and the test of the interaction."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from law_data import TRUTH, simulated
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import norm, t

from upcycle.laws.certificate.likelihood import best_scale, criteria, log_likelihood, log_partition
from upcycle.laws.certificate.profile import Profile, calibrated_threshold, interaction_test, profile, threshold
from upcycle.laws.certificate.validate import leave_one_out, residual_pool
from upcycle.laws.forms import LAWS
from upcycle.laws.solver.prepare import Prepared, prepare
from upcycle.laws.solver.search import Optimum, search
from upcycle.laws.solver.solve import huber

pytestmark = pytest.mark.slow


def fitted(name: str, noise: float, seed: int = 0, **fixed: float) -> tuple[Prepared, Optimum]:
    """A law fitted to losses simulated from it."""
    prepared = prepare(LAWS[name], simulated(name, noise, seed), fixed)
    return prepared, search(prepared)


def profile_of(prepared: Prepared, optimum: Optimum, name: str) -> Profile:
    """A profile with the threshold of least squares."""
    return profile(prepared, optimum, name, threshold(len(prepared.target_N), len(prepared.slots)))


@pytest.mark.parametrize("scale", [1e-8, 1e-6, 3e-5])
@pytest.mark.parametrize("delta", [1e-4, 1e-3, 1e-2])
def test_the_density_integrates_to_one(scale: float, delta: float) -> None:
    def density(r: float) -> float:
        return float(np.exp(-huber(np.array(r), delta) / scale - log_partition(np.array(scale), delta)))

    width = max(np.sqrt(scale), scale / delta)
    ends = [0.0, *(width * np.array([1, 3, 10, 30, 100])), delta]
    ends = sorted({end for end in ends if end <= 100 * width})
    total = 2 * sum(quad(density, low, high)[0] for low, high in pairwise(ends))
    assert total == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("delta", [1e-4, 1e-3, 1e-1, np.inf])
def test_the_scale_has_the_highest_likelihood(delta: float) -> None:
    residual = 2e-3 * np.random.default_rng(0).standard_normal(40)
    objective = float(huber(residual, delta).sum())

    def negative(log_scale: float) -> float:
        return objective / np.exp(log_scale) + 40 * float(log_partition(np.exp(np.array(log_scale)), delta))

    middle = np.log(objective / 40)
    best = minimize_scalar(negative, bounds=(middle - 2, middle + 2), method="bounded", options={"xatol": 1e-10})
    assert best_scale(np.array(objective), 40, delta) == pytest.approx(np.exp(best.x), rel=1e-6)
    assert log_likelihood(np.array(objective), 40, delta) == pytest.approx(-best.fun, rel=1e-12)


def test_least_squares_has_the_gaussian_likelihood() -> None:
    residual = np.random.default_rng(0).normal(0, 0.01, 30)
    found = criteria(float((residual**2 / 2).sum()), 30, 3, np.inf)
    deviation = np.sqrt(np.mean(residual**2))
    assert found.log_likelihood == pytest.approx(norm.logpdf(residual, scale=deviation).sum(), rel=1e-12)
    assert found.scale == pytest.approx(deviation**2)
    assert found.aic == pytest.approx(2 * 4 - 2 * found.log_likelihood)
    assert found.bic == pytest.approx(4 * np.log(30) - 2 * found.log_likelihood)
    assert found.aicc - found.aic == pytest.approx(2 * 4 * 5 / 25)


def test_too_few_points_for_the_correction_and_perfect_fits() -> None:
    assert criteria(1e-6, 5, 3, 1e-3).aicc == np.inf
    assert criteria(0.0, 10, 3, 1e-3).log_likelihood == np.inf


def test_a_parameter_without_use_is_not_preferred_by_the_criteria() -> None:
    """Losses without interaction: the law with one gains less than it costs, in 8 of 10 simulations by BIC."""
    without = 0
    for seed in range(10):
        data = simulated("multiplicative_no_interaction", 2e-3, seed)
        bic = []
        for name in ("multiplicative", "multiplicative_no_interaction"):
            prepared = prepare(LAWS[name], data, {})
            bic.append(criteria(search(prepared).objective, 25, len(prepared.slots), 1e-3).bic)
        without += bic[1] < bic[0]
    assert without >= 8


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("multiplicative", "alpha3"),
        ("chinchilla", "E"),
        ("multiplicative_offset", "alpha3"),
        ("configuration_multiplicative", "beta3"),
        ("joint_offset", "E"),
    ],
)
def test_a_profile_equals_full_fits_with_the_parameter_fixed(name: str, parameter: str) -> None:
    prepared, optimum = fitted(name, 1e-3)
    found = profile_of(prepared, optimum, parameter)
    assert len(found.values) in (13, 25)
    assert found.deviance.min() == pytest.approx(0, abs=1e-9)
    assert (np.diff(found.values) > 0).all()
    for k in (1, 9):
        law, data = prepared.law, prepared.data
        separate = search(prepare(law, data, {parameter: float(found.values[k])}))
        assert found.objective[k] == pytest.approx(separate.objective, rel=1e-6)


def test_the_profile_of_a_floor_at_its_wall_goes_up_only() -> None:
    prepared, optimum = fitted("multiplicative", 1e-3)
    assert prepared.values(optimum.phi_R[None])[0, 4] == 0
    found = profile_of(prepared, optimum, "E")
    assert found.values[0] == 0
    assert found.interval[0] is None
    assert len(found.values) == 13


def test_a_profile_holds_what_is_fixed_too() -> None:
    """An offset and a floor that are fixed stay so."""
    fixed = {"D0": TRUTH["multiplicative_offset"]["D0"], "E": TRUTH["multiplicative_offset"]["E"]}
    prepared, optimum = fitted("multiplicative_offset", 1e-3, **fixed)
    found = profile_of(prepared, optimum, "alpha3")
    separate = search(prepare(prepared.law, prepared.data, {**fixed, "alpha3": float(found.values[3])}))
    assert found.objective[3] == pytest.approx(separate.objective, rel=1e-6)


def ends_of(found: Profile) -> tuple[float, float]:
    """Both ends of an interval that has them."""
    low, high = found.interval
    assert low is not None
    assert high is not None
    return low, high


def test_the_interval_ends_where_the_deviance_reaches_the_threshold() -> None:
    prepared, optimum = fitted("chinchilla", 1e-3)
    found = profile_of(prepared, optimum, "E")
    highest = log_likelihood(np.array(optimum.objective), 25, 1e-3)
    for end in ends_of(found):
        held = search(prepare(prepared.law, prepared.data, {"E": end}))
        deviance = 2 * (highest - log_likelihood(np.array(held.objective), 25, 1e-3))
        assert deviance == pytest.approx(found.threshold, rel=0.02)


def test_the_interval_of_a_linear_law_is_students() -> None:
    """Equation 16 is a line in logarithms, by least squares: the profile's interval is the exact one."""
    prepared, optimum = fitted("scale_vs_d1", 0.1)
    found = profile_of(prepared, optimum, "eta")
    x, y = np.log(prepared.data["D1"]), prepared.target_N
    slope = np.polyfit(x, y, 1)[0]
    residual = y - np.polyval(np.polyfit(x, y, 1), x)
    error = np.sqrt((residual**2).sum() / (len(x) - 2) / ((x - x.mean()) ** 2).sum())
    reach = t.ppf(0.975, len(x) - 2) * error
    assert ends_of(found) == pytest.approx((-slope - reach, -slope + reach), rel=5e-3)


def test_the_threshold_falls_to_chi_squares_with_many_points() -> None:
    assert threshold(25, 5) == pytest.approx(4.92, abs=0.01)
    assert threshold(100_000, 5) == pytest.approx(3.8416, abs=1e-3)


@pytest.mark.parametrize(("noise", "factor"), [(2e-4, 1.0), (1e-2, np.pi / 2)])
def test_deviances_of_gaussian_residuals_far_beyond_delta_are_larger_than_chi_squares(
    noise: float, factor: float
) -> None:
    """Least absolute deviations with the likelihood of exponential tails: pi / 2 times, for many points."""
    law = LAWS["scale_vs_d1"]
    data = {"D1": np.geomspace(1e9, 1e11, 100)}
    loss = law.predict(TRUTH["scale_vs_d1"], data)
    residual = noise * norm.ppf((np.random.default_rng(0).permutation(100) + 0.5) / 100)
    prepared = prepare(replace(law, delta=1e-3), {**data, "A": loss * np.exp(residual)}, {})
    found = calibrated_threshold(prepared, search(prepared), "eta", residual, draws=2000, seed=0)
    assert found == pytest.approx(factor * 3.84, rel=0.1)


def test_an_end_that_the_data_do_not_show_is_open() -> None:
    """With much noise no floor is excluded down to 0."""
    prepared, optimum = fitted("power", 5e-2)
    low, _ = profile_of(prepared, optimum, "E").interval
    assert low is None


def test_a_shared_floor_of_groups_has_a_profile() -> None:
    one, two = simulated("power", 1e-3, 0), simulated("power", 1e-3, 1)
    data = {name: np.concatenate([one[name], two[name]]) for name in one}
    group_N = np.repeat([0, 1], len(one["loss"]))
    prepared = prepare(LAWS["power"], data, {}, group_N=group_N, shared=("E",))
    optimum = search(prepared)
    found = profile_of(prepared, optimum, "E")
    low, high = ends_of(found)
    assert low < TRUTH["power"]["E"] < high
    held = prepare(LAWS["power"], data, {"E": float(found.values[2])}, group_N=group_N)
    assert found.objective[2] == pytest.approx(search(held).objective, rel=1e-6)


def test_the_statistic_is_that_of_the_law_without_interaction() -> None:
    prepared, optimum = fitted("multiplicative", 2e-3)
    pool = residual_pool(leave_one_out(prepared, optimum).residual_N)
    found = interaction_test(prepared, optimum, "alpha3", pool, draws=60, seed=0)
    without = search(prepare(LAWS["multiplicative_no_interaction"], prepared.data, {}))
    ends = log_likelihood(np.array([optimum.objective, without.objective]), 25, 1e-3)
    assert found.statistic == pytest.approx(2 * (ends[0] - ends[1]), rel=1e-9)
    assert found.p_bootstrap == pytest.approx(1 / 61)
    assert found.p_chi2 < 1e-6
    assert "show an interaction" in found.statement


def test_no_interaction_is_not_found_more_often_than_it_may() -> None:
    """20 simulations without interaction: p is below 0.5 in about half of them and below 0.05 in hardly any."""
    p = []
    for seed in range(20):
        data = simulated("multiplicative_no_interaction", 2e-3, seed)
        prepared = prepare(LAWS["multiplicative"], data, {"E": TRUTH["multiplicative_no_interaction"]["E"]})
        optimum = search(prepared)
        pool = residual_pool(leave_one_out(prepared, optimum).residual_N)
        found = interaction_test(prepared, optimum, "alpha3", pool, draws=40, seed=seed)
        assert found.statistic >= -1e-9
        assert found.p_bootstrap is not None
        assert ("do not settle" in found.statement) == (found.p_bootstrap > 0.05)
        p.append(found.p_bootstrap)
    assert sum(value < 0.05 for value in p) <= 3
    assert 5 <= sum(value < 0.5 for value in p) <= 15


def test_the_profile_of_least_squares_is_that_of_an_infinite_delta() -> None:
    """Finite: nothing in it divides by delta."""
    law = replace(LAWS["multiplicative"], delta=np.inf)
    prepared = prepare(law, simulated("multiplicative", 1e-3), {})
    assert np.isfinite(profile_of(prepared, search(prepared), "alpha3").deviance).all()
