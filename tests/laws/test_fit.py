"""Fits: parameters come back, validation is what it says, verdicts are said in words, files are exact."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from law_data import TRUTH, inputs_of, simulated, trial
from numpy import log
from reference import scipy_fit

from upcycle.errors import UserError
from upcycle.laws.fit import fit
from upcycle.laws.forms import LAWS
from upcycle.laws.law import Law
from upcycle.laws.result import FitResult, read_fit, write_fit

FOUR = ["multiplicative", "additive", "multiplicative_no_interaction", "additive_no_interaction"]


@pytest.fixture(scope="module")
def noisy() -> FitResult:
    """The multiplicative law on losses simulated from it with a noise of 0.02 %."""
    return fit(LAWS["multiplicative"], simulated("multiplicative", 2e-4), ids=[f"run{k}" for k in range(25)])


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_parameters_come_back_from_noiseless_data(name: str) -> None:
    """To a relative 1e-6, from the law's own starts alone."""
    result = fit(LAWS[name], simulated(name), draws=0)
    assert result.certificate["converged"]
    assert result.values == pytest.approx(TRUTH[name], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [*FOUR, "power", "chinchilla", "multiplicative_offset", "exponent_vs_d1", "scale_vs_d1"]
)
def test_noisy_data_give_back_the_parameters_within_their_intervals(name: str) -> None:
    """At least 4 of 5 of all parameters over two seeds lie in their 95 % intervals."""
    inside = []
    for seed in range(2):
        result = fit(LAWS[name], simulated(name, 2e-3, seed), draws=60)
        inside += [low <= TRUTH[name][key] <= high for key in TRUTH[name] for low, high in [result.intervals[key]]]
    assert np.mean(inside) >= 0.8


@pytest.mark.slow
def test_the_trials_leave_one_out_errors_are_reproduced() -> None:
    """RMS in loss of the 25 measured points: 0.048 with interaction, 0.092 without, 0.156 additive without."""
    errors = {name: fit(LAWS[name], trial(), draws=0).loo_rms for name in FOUR}
    assert errors["multiplicative"] == pytest.approx(0.048, abs=5e-4)
    assert errors["multiplicative_no_interaction"] == pytest.approx(0.092, abs=5e-4)
    assert errors["additive_no_interaction"] == pytest.approx(0.156, abs=5e-4)
    assert errors["additive"] == pytest.approx(0.098, abs=5e-4)


def test_the_additive_interaction_depends_on_the_unit_of_d2() -> None:
    """The trial's 0.053 for it had D2 in millions without the 1; a law is declared in one place, here on the fly."""

    def terms(D1: np.ndarray, D2: np.ndarray) -> tuple[dict, ...]:
        exponent = log(D2 / 1e6)
        return {"A": 1.0, "alpha1": -log(D1)}, {"F": 1.0, "alpha2": -exponent, "alpha3": log(D1) * exponent}, {"E": 1.0}

    millions = replace(LAWS["additive"], name="additive_in_millions", terms=terms)
    assert fit(millions, trial(), draws=0).loo_rms == pytest.approx(0.053, abs=5e-4)

    def multiplied(D1: np.ndarray, D2: np.ndarray) -> tuple[dict, ...]:
        exponent = log(D2 / 1e6)
        return {"A": 1.0, "alpha1": -log(D1), "alpha2": -exponent, "alpha3": log(D1) * exponent}, {"E": 1.0}

    same = replace(LAWS["multiplicative"], name="multiplicative_in_millions", terms=multiplied)
    tokens = fit(LAWS["multiplicative"], trial(), draws=0)
    assert fit(same, trial(), draws=0).loo_rms == pytest.approx(tokens.loo_rms, rel=1e-4)


def test_leave_one_out_equals_brute_force_with_scipy() -> None:
    """Seven points, each left out in turn and predicted by scipy's best of 4 starts on the others."""
    law, data = LAWS["power"], {name: c[:7] for name, c in simulated("power", 1e-2).items()}
    result = fit(law, data, draws=0)
    order = np.argsort(data["D2"])
    brute = []
    for left_out in order:
        kept = np.arange(len(order)) != left_out
        values = scipy_fit(law, {name: column[kept] for name, column in data.items()}, starts=4)
        predicted = law.predict(values, {"D2": data["D2"][[left_out]]})[0]
        brute.append(np.log(predicted / data["loss"][left_out]))
    np.testing.assert_allclose(result.loo_residuals_log, brute, atol=1e-6)
    error = data["loss"][order] * np.expm1(brute)
    assert result.loo_rms == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-4)
    assert result.loo_rms_log == pytest.approx(np.sqrt(np.mean(np.square(brute))), rel=1e-4)


def test_residuals_give_the_reported_errors_and_objective(noisy: FitResult) -> None:
    data = simulated("multiplicative", 2e-4)
    residual = np.log(LAWS["multiplicative"].predict(noisy.values, data)) - np.log(data["loss"])
    order = [int(run.removeprefix("run")) for run in noisy.ids]
    np.testing.assert_allclose(noisy.residuals_log, residual[order], atol=1e-12)
    size = np.abs(residual)
    assert noisy.delta == 1e-3
    assert noisy.objective == pytest.approx(np.where(size < 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum(), rel=1e-10)
    assert noisy.rms_log == pytest.approx(np.sqrt(np.mean(residual**2)), rel=1e-10)
    assert noisy.rms == pytest.approx(np.sqrt(np.mean((data["loss"] * np.expm1(residual)) ** 2)), rel=1e-8)


def test_a_good_fit_says_that_it_is_identifiable(noisy: FitResult) -> None:
    assert noisy.identifiable, noisy.statement
    assert noisy.statement.startswith("identifiable: 25 points for 5 parameters")
    certificate = noisy.certificate
    assert certificate["converged"]
    assert certificate["gradient"] < 1e-6
    assert certificate["starts_agree"] > 0.5
    assert certificate["starts"] >= 64
    assert certificate["loo_converged"] == 1.0
    assert certificate["draws"] == 200


@pytest.mark.parametrize("name", ["power", "multiplicative", "chinchilla"])
def test_too_few_points_are_not_identifiable(name: str) -> None:
    law = LAWS[name]
    data = {key: column[: len(law.parameters)] for key, column in simulated(name, 1e-2).items()}
    result = fit(law, data)
    assert not result.identifiable
    n = len(law.parameters)
    assert f"not identifiable: {n} points for {n} parameters, at least {n + 1} are needed" in result.statement
    assert result.loo_rms is None
    assert result.intervals == {}


def test_inputs_that_do_not_vary_are_named() -> None:
    """One model size cannot tell B and beta apart, however many budgets there are."""
    data = simulated("chinchilla", 1e-3)
    one_size = {name: column[data["N"] == data["N"][0]] for name, column in data.items()}
    repeated = {name: np.tile(column, 3) for name, column in one_size.items()}
    result = fit(LAWS["chinchilla"], repeated, draws=20)
    assert not result.identifiable
    assert "cannot tell B, beta apart" in result.statement


def test_parameters_that_trade_off_are_not_identifiable() -> None:
    """Two model sizes determine B, beta and E only together: the condition number says so."""
    data = simulated("chinchilla", 1e-3)
    two = np.isin(data["N"], np.unique(data["N"])[[0, 3]])
    result = fit(LAWS["chinchilla"], {name: column[two] for name, column in data.items()}, draws=20)
    assert not result.identifiable
    assert "condition number" in result.statement or "could be anything" in result.statement


def test_an_undetermined_floor_is_said_in_words() -> None:
    """On the trial's grid E lies anywhere between 0 and 2.2 nats; the verdict says it."""
    result = fit(LAWS["multiplicative"], trial(), draws=100)
    assert not result.identifiable
    assert "E = 0.7715 could be anything from" in result.statement
    low, high = result.intervals["alpha3"]
    assert low > 0  # yet the interaction is plain
    assert high < 0.2


@pytest.mark.slow
def test_a_parameter_beyond_its_bounds_is_said_in_words() -> None:
    result = fit(LAWS["additive"], trial(), draws=20)
    assert result.values["E"] == 0.0
    assert result.certificate["bounds_hit"] == {"E": "0: the data show no floor"}
    assert "E is at or beyond its bounds (0: the data show no floor)" in result.statement


def test_a_fixed_parameter_stays_and_the_others_are_refitted() -> None:
    data = simulated("multiplicative")
    result = fit(LAWS["multiplicative"], data, fixed={"E": 1.4}, draws=20)
    assert result.values == pytest.approx(TRUTH["multiplicative"], rel=1e-6)
    assert result.fixed == {"E": 1.4}
    assert "E" not in result.intervals
    other = fit(LAWS["multiplicative"], simulated("multiplicative", 1e-3), fixed={"E": 0.165, "A": 40.0}, draws=20)
    assert (other.values["E"], other.values["A"]) == (0.165, 40.0)
    assert other.certificate["parameters"] == 3
    with pytest.raises(UserError, match="no parameter `alpha4`"):
        fit(LAWS["multiplicative"], data, fixed={"alpha4": 1.0})
    with pytest.raises(UserError, match="E = -1"):
        fit(LAWS["multiplicative"], data, fixed={"E": -1.0})


def test_every_leave_one_out_refit_is_optimal() -> None:
    """No refit of the trial is improved by a full search of its own."""
    from upcycle.laws.certificate.validate import leave_one_out
    from upcycle.laws.solver.prepare import prepare
    from upcycle.laws.solver.search import search

    law, data = LAWS["additive"], trial()
    prepared = prepare(law, data, {})
    refits = leave_one_out(prepared, search(prepared)).refits
    for k in (0, 24):
        kept = {name: np.delete(column, k) for name, column in data.items()}
        assert refits.objective_S[k] <= search(prepare(law, kept, {})).objective * (1 + 1e-9)


def test_a_fit_does_not_depend_on_the_order_of_rows() -> None:
    data = simulated("power", 1e-2)
    order = np.random.default_rng(0).permutation(len(data["loss"]))
    ids = [f"r{k}" for k in range(len(order))]
    one = fit(LAWS["power"], data, ids=ids)
    other = fit(LAWS["power"], {name: c[order] for name, c in data.items()}, ids=[ids[k] for k in order])
    assert one == other


def test_the_data_hash_changes_with_a_last_digit_and_only_then() -> None:
    data = simulated("power", 1e-2)
    changed = data | {"loss": data["loss"].copy()}
    changed["loss"][0] = np.nextafter(changed["loss"][0], 9)
    first, again, other = (fit(LAWS["power"], rows, draws=0).data_sha256 for rows in (data, data, changed))
    assert first == again != other


def test_the_file_holds_every_number_exactly(noisy: FitResult, tmp_path: Path) -> None:
    path = tmp_path / "fits" / "multiplicative.json"
    write_fit(noisy, path)
    assert read_fit(path) == noisy
    content = json.loads(path.read_text())
    assert content["parameters"]["alpha3"]["value"] == noisy.values["alpha3"]
    assert content["parameters"]["A"]["unit"] == "nats at D1 = 1 token, D2 = 0"
    assert not list(path.parent.glob(".*"))


def test_a_damaged_fit_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    with pytest.raises(UserError, match=r"broken\.json"):
        read_fit(path)
    path.write_text('{"law": "power"')
    with pytest.raises(UserError, match=r"broken\.json is damaged"):
        read_fit(path)
    path.write_text('{"law": "power"}')
    with pytest.raises(UserError, match=r"broken\.json: not a fit: missing fields"):
        read_fit(path)


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(UserError, match="differ in length"):
        fit(LAWS["power"], {"D2": [1e6, 2e6], "loss": [3.0]})


@pytest.mark.parametrize("loss", [0.0, -1.0, float("nan"), float("inf")])
def test_a_loss_without_logarithm_is_refused(loss: float) -> None:
    data = simulated("power")
    data["loss"][3] = loss
    with pytest.raises(UserError, match="fits the logarithm of `loss`"):
        fit(LAWS["power"], data)


def test_equal_residuals_give_an_interval_of_no_width() -> None:
    """Noiseless data: every draw comes back to the truth."""
    result = fit(LAWS["power"], simulated("power"), draws=50)
    for name, (low, high) in result.intervals.items():
        assert low == pytest.approx(TRUTH["power"][name], rel=1e-5)
        assert high == pytest.approx(TRUTH["power"][name], rel=1e-5)


def test_a_special_case_without_interaction_is_never_better_fitted() -> None:
    full, special = (
        fit(LAWS[name], trial(), draws=0).objective for name in ("multiplicative", "multiplicative_no_interaction")
    )
    assert full < special


def test_inputs_may_be_scalars_for_prediction(noisy: FitResult) -> None:
    assert LAWS["multiplicative"].predict(noisy.values, {"D1": 1e9, "D2": 1e9}).shape == (1,)
    assert isinstance(LAWS["multiplicative"], Law)
    assert inputs_of("multiplicative")["D1"].shape == (25,)
