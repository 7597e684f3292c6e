"""The certificate as a whole: ready for JSON, reasons in words, three kinds of intervals that mean what they say."""

import json
from typing import Any

import numpy as np
import pytest
from law_data import TRUTH, simulated

from upcycle.laws import describe
from upcycle.laws.certificate import profile, validate
from upcycle.laws.certificate.certify import certify
from upcycle.laws.certificate.validate import (
    MANY,
    bootstrap,
    bootstrap_noise,
    bootstrap_pairs,
    intervals_by_name,
    leave_one_out,
    root_mean_squares,
)
from upcycle.laws.fit import fit
from upcycle.laws.forms import LAWS
from upcycle.laws.solver import search as search_module
from upcycle.laws.solver.prepare import Prepared, prepare
from upcycle.laws.solver.search import Optimum, Refits, refit, search

pytestmark = pytest.mark.slow


def fitted(name: str, data: dict[str, np.ndarray], **fixed: float) -> tuple[Prepared, Optimum]:
    """A law fitted to data."""
    prepared = prepare(LAWS[name], data, fixed)
    return prepared, search(prepared)


def certified(name: str, noise: float = 2e-3, **options: Any) -> dict[str, Any]:
    """The certificate of a law fitted to losses simulated from it."""
    prepared, optimum = fitted(name, simulated(name, noise))
    return certified_fit(prepared, optimum, **{"draws": 40} | options)


def certified_fit(prepared: Prepared, optimum: Optimum, *, draws: int, seed: int = 0) -> dict[str, Any]:
    """The certificate of a fit, with its residual bootstrap."""
    loo = leave_one_out(prepared, optimum)
    residual = bootstrap(prepared, optimum, loo.residual_N, draws=draws, seed=seed)
    return certify(prepared, optimum, loo, residual=residual, draws=draws, seed=seed)


@pytest.fixture(scope="module")
def multiplicative() -> dict[str, Any]:
    return certified("multiplicative", noise=2e-4)


def test_it_is_json_with_every_part(multiplicative: dict[str, Any]) -> None:
    content = json.loads(json.dumps(multiplicative, allow_nan=False))
    assert content == multiplicative
    assert set(content) == {
        *("aic", "aicc", "bic", "log_likelihood", "scale", "profile", "interaction", "folds", "extrapolation"),
        *("intervals", "draws", "loo_refits"),
    }
    assert set(content["profile"]) == {"E", "alpha3"}
    assert len(content["profile"]["E"]["value"]) == len(content["profile"]["E"]["deviance"])
    assert set(content["folds"]) == {"D1", "D2"}
    assert set(content["intervals"]) == {"residual", "pair", "failed"}
    assert content["interaction"]["name"] == "alpha3"
    assert content["loo_refits"] == 25
    assert content["draws"] == {"asked": 40, "of_each_kind": 40}
    assert content["intervals"]["failed"] == {"residual": 0, "pair": 0}


def test_intervals_of_every_kind_hold_parameters_and_what_follows(multiplicative: dict[str, Any]) -> None:
    for kind in ("residual", "pair"):
        table = multiplicative["intervals"][kind]
        assert set(table) == {
            *TRUTH["multiplicative"],
            *("exponent_at_smallest_D1", "exponent_at_largest_D1", "exhausting_D1"),
        }
        for low, high in table.values():
            assert low <= high


def test_a_law_without_interaction_or_with_a_fixed_floor_has_no_such_entries() -> None:
    prepared, optimum = fitted("power", simulated("power", 1e-3), E=1.5)
    content = certified_fit(prepared, optimum, draws=20)
    assert "interaction" not in content
    assert content["profile"] == {}


@pytest.mark.parametrize("name", ["exponent_vs_d1", "scale_vs_d1"])
def test_relations_between_parameters_are_certified_too(name: str) -> None:
    content = certified(name, noise=1e-2)
    json.dumps(content, allow_nan=False)
    assert content["aic"] is not None
    assert "seed_noise" not in content["intervals"]


@pytest.mark.parametrize(
    ("points", "draws", "why"),
    [(3, 20, "3 points for 3 parameters leave none to spare"), (5, 0, "no draws were asked")],
)
def test_a_certificate_that_cannot_be_is_said_in_words(points: int, draws: int, why: str) -> None:
    data = {name: column[:points] for name, column in simulated("power").items()}
    assert fit(LAWS["power"], data, draws=draws).certificate["skipped"].startswith(why)


def test_confounded_parameters_are_said_in_words() -> None:
    data = simulated("chinchilla", 1e-3)
    one_size = {name: column[data["N"] == data["N"][0]] for name, column in data.items()}
    prepared, optimum = fitted("chinchilla", one_size, E=1.2, alpha=0.3)
    content = certified_fit(prepared, optimum, draws=20)
    assert content == {"skipped": "the inputs of these points cannot tell B, beta apart"}


def test_a_noiseless_fit_is_certified_without_numbers_that_json_cannot_hold() -> None:
    json.dumps(certified("multiplicative", noise=0.0), allow_nan=False)


def test_given_draws_are_reported() -> None:
    prepared, optimum = fitted("multiplicative", simulated("multiplicative", 1e-3))
    given = Refits(np.tile(optimum.phi_R, (10, 1)), np.ones(10), np.arange(10) > 0)
    loo = leave_one_out(prepared, optimum)
    content = certify(prepared, optimum, loo, residual=given, drawn_floor=True, draws=10, seed=0)
    alpha1 = prepared.values(optimum.phi_R[None])[0, 1]
    assert content["intervals"]["residual"]["alpha1"] == [alpha1, alpha1]
    assert content["intervals"]["failed"]["residual"] == 1


def test_nothing_is_solved_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two batches of refits of a whole fit have the same starts, targets and weights."""
    solved: list[bytes] = []

    def noted(prepared: Prepared, warm_WR: np.ndarray, **rows: np.ndarray | None) -> Refits:
        solved.append(b"".join(np.asarray(part).tobytes() for part in (warm_WR, *rows.values()) if part is not None))
        return refit(prepared, warm_WR, **rows)

    for module in (search_module, validate, profile, describe):
        monkeypatch.setattr(module, "refit", noted)
    fit(LAWS["multiplicative"], simulated("multiplicative", 2e-3), draws=40)
    assert len(solved) > 5
    assert len(set(solved)) == len(solved)


def test_groups_have_names_of_their_own() -> None:
    one, two = simulated("power", 1e-3, 0), simulated("power", 1e-3, 1)
    data = {name: np.concatenate([one[name], two[name]]) for name in one}
    prepared = prepare(LAWS["power"], data, {}, group_N=np.repeat([0, 1], len(one["loss"])), shared=("E",))
    optimum = search(prepared)
    content = certified_fit(prepared, optimum, draws=20)
    names = {"A of group 1", "A of group 2", "alpha of group 1", "alpha of group 2", "E"}
    assert set(content["intervals"]["pair"]) == names
    assert set(content["profile"]) == {"E"}


def test_the_intervals_of_a_known_noise_are_those_of_least_squares() -> None:
    """A noise far below delta: the fit is least squares, whose exponent's deviation follows from the design."""
    noise = 2e-4
    prepared, optimum = fitted("power", simulated("power", 1e-6), E=1.5)
    draws = bootstrap_noise(prepared, optimum, noise, draws=2000, seed=0)
    low, high = intervals_by_name(prepared, prepared.values(draws.phi_SR))["alpha"]
    loss = prepared.response_N
    slope_NP = LAWS["power"].gradient(TRUTH["power"], prepared.data)[:, :2]
    inverse = np.linalg.inv(slope_NP.T @ slope_NP) @ slope_NP.T
    deviation = np.sqrt((inverse[1] ** 2) @ (noise / loss) ** 2)
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.06)


def test_a_pair_draw_is_a_fit_to_the_points_drawn() -> None:
    """Each point as often as it was drawn."""
    prepared, optimum = fitted("power", simulated("power", 1e-3), E=1.5)
    draws = bootstrap_pairs(prepared, optimum, draws=3, seed=5)
    n = len(prepared.target_N)
    count_BN = np.random.default_rng(5).multinomial(n, np.full(n, 1 / n), size=3)
    for b in range(3):
        rows = np.repeat(np.arange(n), count_BN[b])
        drawn, best = fitted("power", {key: column[rows] for key, column in prepared.data.items()}, E=1.5)
        assert draws.objective_S[b] == pytest.approx(best.objective, rel=1e-9)
        assert prepared.values(draws.phi_SR[b : b + 1])[0] == pytest.approx(drawn.values(best.phi_R[None])[0], rel=1e-4)


@pytest.mark.slow
def test_many_points_take_fewer_draws_and_folds_and_say_so() -> None:
    rng = np.random.default_rng(0)
    data = {"D": np.exp(rng.uniform(20, 25, MANY + 100)), "N": np.exp(rng.uniform(16, 20, MANY + 100))}
    loss = LAWS["chinchilla"].predict(TRUTH["chinchilla"], data)
    data["loss"] = loss * np.exp(1e-3 * rng.standard_normal(len(loss)))
    prepared, optimum = fitted("chinchilla", data)
    loo = leave_one_out(prepared, optimum)
    assert len(loo.refits.objective_S) == MANY // 2
    rms, _ = root_mean_squares(prepared, prepared.model.value(optimum.phi_R[None])[0] - prepared.target_N)
    assert rms < loo.rms < 1.05 * rms
    residual = bootstrap(prepared, optimum, loo.residual_N, draws=1000, seed=0)
    content = certify(prepared, optimum, loo, residual=residual, draws=1000, seed=0)
    assert content["draws"] == {"asked": 1000, "of_each_kind": 166}
    assert content["folds"]["D"]["groups"] == 10
