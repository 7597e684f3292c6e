"""Leave-one-out refits end at the global optimum, and equal optima that predict differently are named."""

import numpy as np
import pytest
from law_data import simulated, sweep
from numpy.typing import NDArray
from scipy.optimize import differential_evolution, minimize

from upcycle.laws.certificate.validate import leave_one_out
from upcycle.laws.fit import fit
from upcycle.laws.forms import LAWS
from upcycle.laws.grouped import fit_by
from upcycle.laws.solver.prepare import Prepared, prepare, start_grid
from upcycle.laws.solver.search import search, starts

pytestmark = pytest.mark.slow

SIX = (
    "multiplicative",
    "multiplicative_no_interaction",
    "additive",
    "additive_no_interaction",
    "multiplicative_offset",
    "power",  # of each D1, with one floor
)
"""The laws that the default study fits to its upcycled losses."""


def prepared_sweep(name: str) -> Prepared:
    """A law over the default sweep's losses."""
    data = sweep()
    if name == "power":
        return prepare(LAWS[name], data, {}, group_N=np.unique(data["D1"], return_inverse=True)[1], shared=["E"])
    return prepare(LAWS[name], data, {})


@pytest.mark.parametrize("name", SIX)
def test_more_starts_change_nothing(name: str) -> None:
    """7, 14 and 28 starts a fold predict every left-out loss alike to 1e-5 (relative); so the RMS too."""
    prepared = prepared_sweep(name)
    optimum = search(prepared)
    grid = starts(prepared, start_grid(prepared))
    found = [leave_one_out(prepared, optimum).residual_N]
    for count in (14, 28):
        more = grid[np.linspace(0, len(grid) - 1, count).astype(int)]
        found.append(leave_one_out(prepared, optimum, np.concatenate([optimum.warm_SR[:1], more])).residual_N)
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


@pytest.mark.parametrize("left_out", [0, 20])
def test_a_refit_is_the_global_optimum(left_out: int) -> None:
    """Of the multiplicative law, by differential evolution and Nelder-Mead on Equation 8 and Huber's loss as written.

    The left-out points are those whose refits ended 2e-7 and 3e-8 (relative) too high after 300 short steps along a
    valley, and predicted other losses.
    """
    data = sweep()
    D1, D2, y = np.log(data["D1"]), np.log1p(data["D2"]), np.log(data["loss"])
    design = np.stack([np.ones(25), D1.mean() - D1, D2.mean() - D2, (D1 - D1.mean()) * (D2 - D2.mean())])
    kept = np.arange(25) != left_out

    def log_loss(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log(np.exp(design.T @ x[:4]) + np.abs(x[4]))

    def total(x: NDArray[np.float64]) -> NDArray[np.float64]:
        size = np.abs(log_loss(x.reshape(5, -1)) - y[:, None])[kept]
        return np.where(size < 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum(axis=0)

    bounds = [(0, 2), (-0.5, 1.5), (-0.5, 1.5), (-0.3, 0.3), (0, 2.9)]
    options = {"vectorized": True, "updating": "deferred", "popsize": 30, "maxiter": 3000, "tol": 0, "polish": False}
    x = differential_evolution(total, bounds, rng=0, atol=1e-14, **options).x
    for _ in range(4):
        tolerances = {"xatol": 1e-12, "fatol": 1e-18, "maxiter": 20_000, "maxfev": 20_000}
        x = minimize(lambda x: total(x)[0], x, method="Nelder-Mead", options=tolerances).x

    prepared = prepared_sweep("multiplicative")
    loo = leave_one_out(prepared, search(prepared))
    assert loo.refits.objective_S[left_out] == pytest.approx(total(x)[0], rel=1e-9)
    assert loo.residual_N[left_out] == pytest.approx((log_loss(x) - y)[left_out], abs=1e-5)


def test_equal_optima_that_predict_differently_are_named() -> None:
    """Four points left of five, two parameters and a shared floor: many lines fit as well in the sum of sizes."""
    prepared = prepared_sweep("power")
    near = leave_one_out(prepared, search(prepared)).near
    assert near is not None
    assert near.points > 5
    assert near.least_rms < 0.75 * near.greatest_rms
    assert f"predict {near.points} of 25 left-out points differently" in near.statement


def test_of_equal_optima_the_middle_counts() -> None:
    """A constant through four points left of five: every level between the two middle ones fits as well."""
    data = {"D2": np.arange(1.0, 6.0), "loss": 3 * np.exp([0.0, 0.1, 0.2, 0.3, 0.4])}
    prepared = prepare(LAWS["power"], data, {"alpha": 0.0, "E": 0.0})
    loo = leave_one_out(prepared, search(prepared))
    middles = np.array([0.25, 0.25, 0.2, 0.15, 0.15])
    np.testing.assert_allclose(loo.residual_N, middles - [0.0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)
    assert loo.near is not None
    assert loo.near.points == 5
    # Without the third point any level from 0.1 to 0.3 will do (less delta on either side).
    assert loo.near.spread == pytest.approx(3 * (np.exp(0.3 - 1e-3) - np.exp(0.1 + 1e-3)), rel=1e-4)


def test_optima_that_stand_alone_are_not_named() -> None:
    near = leave_one_out(prepared_sweep("multiplicative_offset"), search(prepared_sweep("multiplicative_offset"))).near
    assert near is not None
    assert near.points == 0
    assert near.statement.endswith("predict all left-out points alike")


def test_a_fit_of_equal_optima_is_warned_of() -> None:
    """Over all groups where they share a floor, and where each is a fit of its own."""
    data = sweep()
    for shared in (["E"], []):
        grouped = fit_by(LAWS["power"], data, by="D1", shared=shared, draws=0)
        assert "left-out points differently" in grouped.warnings["equal optima"]
    assert fit(LAWS["multiplicative_offset"], data, draws=0).warnings == {}


def test_the_certificate_holds_it() -> None:
    result = fit(LAWS["power"], simulated("power", 1e-2), draws=0)
    assert result.certificate["loo_near"]["points"] == 0
    assert result.certificate["loo_near"]["least_rms"] == pytest.approx(result.loo_rms, rel=0.02)
