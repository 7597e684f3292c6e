"""Recovery: from losses simulated with each law, intervals hold the true parameters about as often as they say.

`benchmarks/coverage.py` does the same for the main laws with 500 simulations each.
"""

from dataclasses import replace

import numpy as np
import pytest
from law_data import TRUTH, inputs_of

from upcycle.laws.certificate.likelihood import log_likelihood
from upcycle.laws.certificate.profile import threshold
from upcycle.laws.certificate.validate import bootstrap, intervals_by_name, leave_one_out
from upcycle.laws.forms import LAWS
from upcycle.laws.solver.prepare import Prepared, prepare
from upcycle.laws.solver.search import FRESH, Optimum, refit
from upcycle.laws.terms import Array

pytestmark = pytest.mark.slow

LOSS_LAWS = [name for name in LAWS if LAWS[name].response == "loss"]
DRAWS = 80


def noiseless(name: str, **fixed: float) -> tuple[Prepared, Array]:
    """The fit of a law's exact losses, and its true parameters in the solver's variables."""
    law, data = LAWS[name], inputs_of(name)
    prepared = prepare(law, {**data, "loss": law.predict(TRUTH[name], data)}, fixed)
    internal = dict(zip(law.names, law.internal(TRUTH[name]), strict=True))
    return prepared, prepared.scale_RP @ np.array([internal[slot.parameter.name] for slot in prepared.slots])


def hits(name: str, noise: float, simulations: int, **fixed: float) -> dict[str, float]:
    """Share of simulations whose residual-bootstrap interval holds the true value, by parameter or derived quantity."""
    prepared, truth_R = noiseless(name, **fixed)
    z_SN = np.random.default_rng(0).standard_normal((simulations, len(prepared.target_N)))
    target_SN = prepared.target_N + noise * z_SN
    fits = refit(prepared, truth_R[None], target_SN=target_SN)
    true = intervals_by_name(prepared, prepared.values(truth_R[None]))
    inside: dict[str, list[bool]] = {key: [] for key in true}
    for s, phi_R in enumerate(fits.phi_SR):
        one = replace(prepared, target_N=target_SN[s])
        warm_SR = np.repeat(phi_R[None], 1 + FRESH, axis=0)
        optimum = Optimum(phi_R, float(fits.objective_S[s]), 0.0, True, 0, 1, 1.0, 0, warm_SR)
        residual_N = leave_one_out(one, optimum, phi_R[None]).residual_N
        draws = bootstrap(one, optimum, residual_N, draws=DRAWS, seed=s)
        for key, (low, high) in intervals_by_name(one, one.values(draws.phi_SR)).items():
            inside[key].append(not (true[key][0] < low or true[key][0] > high))
    return {key: float(np.mean(rows)) for key, rows in inside.items()}


@pytest.mark.parametrize(
    ("name", "fixed", "noise"),
    [("power", {"E": 1.5}, 5e-3), ("multiplicative", {"E": 1.4}, 2e-3), ("chinchilla", {}, 1e-3)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(name: str, fixed: dict[str, float], noise: float) -> None:
    """95 %, here within three standard errors of a share of 60 simulations; not always, since not simply wide."""
    shares = hits(name, noise, 60, **fixed)
    for key, share in shares.items():
        assert share >= 0.865, key
    assert np.mean(list(shares.values())) < 0.99


@pytest.mark.parametrize("name", LOSS_LAWS)
def test_every_law_comes_back_within_its_intervals_from_little_noise(name: str) -> None:
    """Noise of 0.01 %: over 2 simulations, most parameters (whose misses come together) lie in their intervals."""
    shares = hits(name, 1e-4, 2)
    assert np.mean([shares[key] for key in TRUTH[name]]) > 0.5


@pytest.mark.parametrize("name", LOSS_LAWS)
def test_the_truth_is_about_as_likely_as_the_optimum(name: str) -> None:
    """All parameters at once: the deviance of the truth is within its 95 % bound in at least 16 of 20 simulations."""
    prepared, truth_R = noiseless(name)
    n, p = len(prepared.target_N), len(prepared.slots)
    z_SN = np.random.default_rng(1).standard_normal((20, n))
    target_SN = prepared.target_N + 1e-3 * z_SN
    fits = refit(prepared, truth_R[None], target_SN=target_SN)
    truth_S = prepared.problem(target_SN).objective(np.repeat(truth_R[None], 20, axis=0))
    ends = log_likelihood(np.stack([fits.objective_S, truth_S]), n, prepared.law.delta)
    deviance_S = 2 * (ends[0] - ends[1])
    assert (deviance_S >= -1e-9).all()
    assert (deviance_S < threshold(n, p, together=p)).sum() >= 16
