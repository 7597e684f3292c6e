"""Grouped folds and extrapolation: what they leave out, and that each prediction is that of a fit to the rest."""

import numpy as np
import pytest
from law_data import TRUTH, simulated

from upcycle.laws.certificate.holdout import HeldOut, extrapolation, folds, grouping
from upcycle.laws.forms import LAWS
from upcycle.laws.solver.prepare import Prepared, prepare
from upcycle.laws.solver.search import Optimum, search


def fitted(name: str, data: dict[str, np.ndarray], **fixed: float) -> tuple[Prepared, Optimum]:
    """A law fitted to data."""
    prepared = prepare(LAWS[name], data, fixed)
    return prepared, search(prepared)


def predicted(name: str, data: dict[str, np.ndarray], left_out: np.ndarray, **fixed: float) -> np.ndarray:
    """Losses of the rows left out, by a full search on the others alone."""
    prepared, optimum = fitted(name, {key: column[~left_out] for key, column in data.items()}, **fixed)
    values = prepared.values(optimum.phi_R[None])[0]
    names = [slot.parameter.name for slot in prepared.slots]
    rows = {key: column[left_out] for key, column in data.items()}
    return LAWS[name].predict(fixed | dict(zip(names, values, strict=True)), rows)


def rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


@pytest.mark.parametrize("column", ["D", "N"])
def test_folds_are_fits_without_a_level(column: str) -> None:
    data = simulated("chinchilla", 1e-3)
    found = folds(*fitted("chinchilla", data))[column]
    assert isinstance(found, HeldOut)
    assert (found.groups, found.points) == (5, 25)
    errors, logs = [], []
    for level in np.unique(data[column]):
        left_out = data[column] == level
        loss = predicted("chinchilla", data, left_out)
        errors.append(loss - data["loss"][left_out])
        logs.append(np.log(loss / data["loss"][left_out]))
    assert found.rms == pytest.approx(rms(np.concatenate(errors)), rel=1e-4)
    assert found.rms_log == pytest.approx(rms(np.concatenate(logs)), rel=1e-4)


def test_extrapolation_is_a_fit_without_the_largest_level() -> None:
    data = simulated("chinchilla", 1e-3)
    found = extrapolation(*fitted("chinchilla", data))
    assert list(found) == ["D", "N"]
    for column, result in found.items():
        assert isinstance(result, HeldOut)
        left_out = data[column] == data[column].max()
        loss = predicted("chinchilla", data, left_out)
        assert result.points == 5
        assert result.least == data[column].max()
        assert result.rms == pytest.approx(rms(loss - data["loss"][left_out]), rel=1e-4)


def test_of_six_levels_the_two_largest_are_left_out_too() -> None:
    found = extrapolation(*fitted("power", simulated("power", 1e-3), E=TRUTH["power"]["E"]))
    assert list(found) == ["D2", "D2, two largest"]
    two = found["D2, two largest"]
    assert isinstance(two, HeldOut)
    data = simulated("power", 1e-3)
    left_out = data["D2"] >= np.sort(data["D2"])[-2]
    loss = predicted("power", data, left_out, E=TRUTH["power"]["E"])
    assert two.points == 2
    assert two.rms == pytest.approx(rms(loss - data["loss"][left_out]), rel=1e-4)


def test_without_noise_every_level_is_predicted() -> None:
    prepared, optimum = fitted("multiplicative", simulated("multiplicative"))
    for result in (*folds(prepared, optimum).values(), *extrapolation(prepared, optimum).values()):
        assert isinstance(result, HeldOut)
        assert result.rms < 1e-8


def test_a_wrong_law_extrapolates_worse_than_it_fits() -> None:
    """Losses with an interaction, predicted without one: the largest budget is off by more than the fit's residuals."""
    prepared, optimum = fitted("multiplicative_no_interaction", simulated("multiplicative", 1e-4))
    residual = prepared.model.value(optimum.phi_R[None])[0] - prepared.target_N
    found = extrapolation(prepared, optimum)["D2"]
    assert isinstance(found, HeldOut)
    assert found.rms_log is not None
    assert found.rms_log > 1.5 * rms(residual)


def test_many_levels_are_joined_to_ten_groups_of_neighbours() -> None:
    values = np.random.default_rng(0).uniform(1, 100, 57)
    group = grouping(values)
    assert sorted(set(group)) == list(range(10))
    assert np.bincount(group).min() >= 5
    assert (np.diff(group[np.argsort(values)]) >= 0).all()


def test_a_level_of_many_points_stays_whole_and_no_group_is_empty() -> None:
    values = np.concatenate([np.full(100, 1.0), np.arange(2.0, 30.0)])
    group = grouping(values)
    assert len(set(group[:100])) == 1
    assert sorted(set(group)) == list(range(group.max() + 1))


def test_few_levels_are_groups_of_their_own() -> None:
    assert grouping(np.array([5.0, 1.0, 5.0, 3.0])).tolist() == [2, 0, 2, 1]


def test_two_levels_are_skipped_with_a_reason() -> None:
    data = simulated("chinchilla", 1e-3)
    kept = data["N"] <= np.unique(data["N"])[1]
    prepared, optimum = fitted("chinchilla", {key: column[kept] for key, column in data.items()}, E=1.2)
    found = folds(prepared, optimum)["N"]
    assert found == "2 levels of N; at least 3 are needed"
    assert extrapolation(prepared, optimum)["N"] == found


def test_too_few_points_left_are_skipped_with_a_reason() -> None:
    data = {name: column[:4] for name, column in simulated("power", 1e-3).items()}
    found = folds(*fitted("power", data))["D2"]
    assert found == "3 points would be left for 3 parameters; at least 4 are needed"


def test_levels_left_that_do_not_determine_the_law_are_skipped_with_a_reason() -> None:
    """Without one of three sizes, two are left for B, beta and E."""
    data = simulated("chinchilla", 1e-3)
    kept = data["N"] <= np.unique(data["N"])[2]
    found = folds(*fitted("chinchilla", {key: column[kept] for key, column in data.items()}))
    assert isinstance(found["D"], HeldOut)
    assert isinstance(found["N"], str)
    assert found["N"].startswith("without N = 1.5e+07")


def test_a_line_has_errors_of_its_response_only() -> None:
    found = folds(*fitted("exponent_vs_d1", simulated("exponent_vs_d1", 1e-2)))["D1"]
    assert isinstance(found, HeldOut)
    assert found.rms_log is None
    assert found.rms > 0
