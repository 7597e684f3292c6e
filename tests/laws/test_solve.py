"""The solver: no higher than scipy's BFGS, floors at 0, truly least."""

import dataclasses

import numpy as np
import pytest
from law_data import simulated, trial
from reference import huber_sum, scipy_fit

from upcycle.laws.forms import LAWS
from upcycle.laws.solver.prepare import prepare, start_grid
from upcycle.laws.solver.search import search
from upcycle.laws.solver.solve import huber, minimise

pytestmark = pytest.mark.slow

LOSS_LAWS = [name for name, law in LAWS.items() if law.response == "loss"]


def test_huber_is_quadratic_within_delta_and_linear_outside() -> None:
    residual = np.array([-2.0, -0.1, 0.0, 0.05, 0.1, 3.0])
    np.testing.assert_allclose(huber(residual, 0.1), [0.195, 0.005, 0, 0.00125, 0.005, 0.295])
    np.testing.assert_allclose(huber(residual, np.inf), residual**2 / 2)


@pytest.mark.parametrize("name", LOSS_LAWS)
def test_the_objective_is_no_higher_than_scipys_on_simulated_losses(name: str) -> None:
    data = simulated(name, 1e-2)
    ours = search(prepare(LAWS[name], data, {})).objective
    assert ours <= huber_sum(LAWS[name], data, scipy_fit(LAWS[name], data, starts=2)) * (1 + 1e-9)


@pytest.mark.parametrize(
    "name", ["multiplicative", "multiplicative_no_interaction", "additive", "additive_no_interaction"]
)
def test_the_objective_is_no_higher_than_scipys_on_measured_losses(name: str) -> None:
    ours = search(prepare(LAWS[name], trial(), {})).objective
    assert ours <= huber_sum(LAWS[name], trial(), scipy_fit(LAWS[name], trial(), starts=3)) * (1 + 1e-9)


def test_the_reported_objective_is_the_sum_of_huber_losses() -> None:
    prepared = prepare(LAWS["multiplicative"], trial(), {})
    optimum = search(prepared)
    values = dict(zip(prepared.law.names, prepared.values(optimum.phi_R[None])[0], strict=True))
    assert optimum.objective == pytest.approx(huber_sum(prepared.law, trial(), values), rel=1e-12)


def test_no_step_from_the_optimum_lowers_the_objective() -> None:
    """200 random directions at 3 lengths, in scaled variables."""
    prepared = prepare(LAWS["multiplicative"], trial(), {})
    optimum = search(prepared)
    directions = np.random.default_rng(0).standard_normal((200, len(optimum.phi_R)))
    for length in (1e-3, 1e-5, 1e-7):
        around = prepared.problem().objective(optimum.phi_R + length * directions)
        assert around.min() >= optimum.objective * (1 - 1e-14)


def test_a_floor_that_the_data_do_not_want_ends_at_exactly_zero() -> None:
    data = {"D2": 1e6 * 2.0 ** np.arange(8), "loss": 30 * (1e6 * 2.0 ** np.arange(8)) ** -0.15}
    data["loss"] *= np.exp(
        -0.01 * (np.arange(8) - 3.5) ** 2
    )  # bends downwards: steeper than any power law with a floor
    prepared = prepare(LAWS["power"], data, {})
    optimum = search(prepared)
    assert prepared.values(optimum.phi_R[None])[0][-1] == 0.0
    assert optimum.converged


def test_every_start_is_a_problem_of_its_own() -> None:
    """A start ends at the same place alone and among others, and with a row of weights of its own."""
    prepared = prepare(LAWS["power"], simulated("power", 1e-2), {})
    starts = start_grid(prepared)[:6]
    weights = np.random.default_rng(0).integers(0, 3, size=(6, len(prepared.target_N))).astype(float)
    together = minimise(prepared.problem(weight_SN=weights), starts)
    for k in range(6):
        alone = minimise(prepared.problem(weight_SN=weights[k : k + 1]), starts[k : k + 1])
        assert alone.objective_S[0] == pytest.approx(together.objective_S[k], rel=1e-9)


def test_least_squares_is_the_limit_of_an_infinite_delta() -> None:
    data = simulated("power", 1e-2)
    law = dataclasses.replace(LAWS["power"], delta=np.inf)
    optimum = search(prepare(law, data, {"E": 1.5}))
    slope, _ = np.polyfit(np.log(data["D2"]), np.log(data["loss"] - 1.5), 1)
    prepared = prepare(law, data, {"E": 1.5})
    values = prepared.values(optimum.phi_R[None])[0]
    residual = np.log(law.predict({"A": values[0], "alpha": values[1], "E": 1.5}, data)) - np.log(data["loss"])
    assert optimum.objective == pytest.approx((residual**2).sum() / 2)
    assert values[1] == pytest.approx(-slope, rel=0.05)
    assert optimum.converged
