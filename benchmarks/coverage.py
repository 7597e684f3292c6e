"""How often reported 95 % intervals hold the truth: losses simulated from known laws, and fitted as real ones are.

For each law and kind of noise: intervals of the residual bootstrap (the reported ones) and, on request, of the pair
bootstrap and of the profiles of E and of the interaction with the threshold that is reported (calibrated by bootstrap),
with that of least squares and with 3.84. The fits of all simulations are one batch; leave-one-out residuals and draws
are made by the functions that real fits use. A fit starts from the truth and three others, its refits from where it
ended; with `--whole` all start as those of real fits do, which takes about twice the time.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py [--laws joint ...] [--kinds residual pair profile]

The requirement is 92 to 98 % for the residual bootstrap, of every parameter and of the exponents of D2. The standard
error of a share of 95 % of 500 is 1 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import chi2

from upcycle.laws.certificate.likelihood import log_likelihood
from upcycle.laws.certificate.profile import PROFILED, calibrated_threshold, threshold
from upcycle.laws.certificate.validate import (
    bootstrap,
    bootstrap_pairs,
    intervals_by_name,
    leave_one_out,
    residual_pool,
)
from upcycle.laws.forms import LAWS
from upcycle.laws.solver.prepare import Prepared, prepare, start_grid
from upcycle.laws.solver.search import FRESH, Optimum, Refits, refit, search

TOKENS = 0.577e9 * 2.0 ** np.arange(5)
SIZES = np.array([1.47e7, 4.4e7, 9.8e7, 2.3e8, 5.2e8, 1.086e9])
WANTED = (0.92, 0.98)


def grid(**axes: np.ndarray) -> dict[str, np.ndarray]:
    """Every combination of the axes' values."""
    columns = np.meshgrid(*axes.values(), indexing="ij")
    return dict(zip(axes, (column.ravel() for column in columns), strict=True))


@dataclass(frozen=True)
class Case:
    """A law with its true parameters, the grid that is simulated, and which parameters are held."""

    law: str
    truth: Mapping[str, float]
    inputs: Mapping[str, np.ndarray]
    fixed: tuple[str, ...] = ()


TABLE_2_AT_98M = {"A": 16.3, "alpha1": 0.043, "alpha2": 0.085, "alpha3": 7.98e-4, "E": 0.165 + 8.53 * 9.8e7**-0.112}
TABLE_8 = {"A": 400.0, "alpha1": 0.18, "alpha2": 0.2, "alpha3": 0.008, "E": 1.4}
TABLE_2 = {"A": 16.3, "alpha1": 0.043, "alpha2": 0.085, "alpha3": 7.98e-4, "B": 8.53, "beta": 0.112, "E": 0.165}
D1_D2 = grid(D1=TOKENS, D2=TOKENS)
CASES = {
    "chinchilla": Case(
        "chinchilla",
        {"A": 8.83, "alpha": 0.088, "B": 12.3, "beta": 0.116, "E": 0.165},
        grid(D=TOKENS, N=SIZES),
    ),
    "chinchilla_hoffmann": Case(
        "chinchilla",
        {"A": 406.4, "alpha": 0.336, "B": 410.7, "beta": 0.339, "E": 1.693},
        grid(D=TOKENS, N=SIZES),
    ),
    "multiplicative_fixed": Case("multiplicative", TABLE_2_AT_98M, D1_D2, ("E",)),
    "multiplicative_free": Case("multiplicative", TABLE_2_AT_98M, D1_D2),
    "table_8_fixed": Case("multiplicative", TABLE_8, D1_D2, ("E",)),
    "table_8_free": Case("multiplicative", TABLE_8, D1_D2),
    "power_fixed": Case(
        "power", {"A": 30.0, "alpha": 0.15, "E": 1.5}, {"D2": TOKENS[0] * 2.0 ** np.arange(0, 6, 0.75)}, ("E",)
    ),
    "joint": Case("joint", TABLE_2, grid(D1=TOKENS, D2=TOKENS, N1=SIZES), ("E",)),
}
MAIN = ("chinchilla", "multiplicative_fixed", "multiplicative_free", "joint")
NOISES = {
    "0.003 nats": lambda loss, z: loss + 0.003 * z,
    "0.3 %": lambda loss, z: loss * np.exp(0.003 * z),
    "1 %": lambda loss, z: loss * np.exp(0.01 * z),
}


def prepared_case(case: Case) -> tuple[Prepared, np.ndarray]:
    """The fit of a case's noiseless losses, and its true free parameters in the solver's variables."""
    law = LAWS[case.law]
    fixed = {name: case.truth[name] for name in case.fixed}
    prepared = prepare(law, {**case.inputs, "loss": law.predict(case.truth, case.inputs)}, fixed)
    return prepared, true_phi(prepared, case.truth)


def true_phi(prepared: Prepared, truth: Mapping[str, float]) -> np.ndarray:
    """The true parameters in the solver's variables."""
    internal = dict(zip(prepared.law.names, prepared.law.internal(truth), strict=True))
    return prepared.scale_RP @ np.array([internal[slot.parameter.name] for slot in prepared.slots])


class Count:
    """How often intervals held the truth, missed it above, and missed it below."""

    def __init__(self) -> None:
        self.rows: dict[str, list[tuple[bool, bool]]] = {}

    def add(self, name: str, low: float, high: float, truth: float) -> None:
        """One interval; an end that is no number is open."""
        self.rows.setdefault(name, []).append((truth < low, truth > high))

    def report(self, label: str, wanted: bool) -> None:
        """A line for each name."""
        for name, misses in self.rows.items():
            below, above = np.mean(misses, axis=0)
            share = 1 - below - above
            mark = "" if not wanted or WANTED[0] <= share <= WANTED[1] else "  OUTSIDE 92 to 98 %"
            print(
                f"  {label:18s} {name:24s} {share:6.1%}   truth below {below:5.1%}, above {above:5.1%}{mark}",
                flush=True,
            )


def simulate(name: str, noise: str, simulations: int, draws: int, kinds: tuple[str, ...], whole: bool) -> None:
    """Simulate and fit one case under one noise, and print how often each interval held the truth."""
    begin = time.process_time()
    case = CASES[name]
    prepared, truth_R = prepared_case(case)
    loss_N = np.exp(prepared.target_N)
    z_SN = np.random.default_rng(0).standard_normal((simulations, len(loss_N)))
    target_SN = np.log(NOISES[noise](loss_N, z_SN))
    warm_WR = np.concatenate([truth_R[None], search(prepared).warm_SR[-3:]])
    fits = refit(prepared, warm_WR, target_SN=target_SN)
    true = {name: low for name, (low, _) in intervals_by_name(prepared, prepared.values(truth_R[None])).items()}
    counts = {kind: Count() for kind in kinds}
    limits = {name: np.zeros(simulations) for name in profiled(prepared)} if "profile" in kinds else {}
    grid_SR = start_grid(prepared)
    failed = 0
    for s in range(simulations):
        one, optimum = replace(prepared, target_N=target_SN[s]), ended(fits, s)
        optimum = search(one, grid_SR) if whole else optimum
        drawn: dict[str, Refits] = {}
        residual_N = leave_one_out(one, optimum, None if whole else optimum.phi_R[None]).residual_N
        for key, limit_S in limits.items():
            pool_N = residual_pool(residual_N)
            limit_S[s] = calibrated_threshold(one, optimum, key, pool_N, draws=draws, seed=s)
        if "residual" in kinds:
            drawn["residual"] = bootstrap(one, optimum, residual_N, draws=draws, seed=s)
        if "pair" in kinds:
            drawn["pair"] = bootstrap_pairs(one, optimum, draws=draws, seed=s)
        for kind, refits in drawn.items():
            failed += int((~refits.converged_S).sum())
            for key, (low, high) in intervals_by_name(one, one.values(refits.phi_SR)).items():
                counts[kind].add(key, low, high, true[key])
    print(
        f"{name}, noise {noise}: {simulations} simulations x {draws} draws of {len(loss_N)} points, "
        f"{time.process_time() - begin:.0f} s; {int((~fits.converged_S).sum())} fits and {failed} draws not converged"
    )
    for kind, count in counts.items():
        count.report(f"{kind} bootstrap", kind == "residual")
    profiles(case, prepared, fits, target_SN, limits)


def profiled(prepared: Prepared) -> list[str]:
    """The free parameters that have a profile."""
    return [slot.parameter.name for slot in prepared.slots if slot.parameter.name in PROFILED]


def ended(fits: Refits, s: int) -> Optimum:
    """One simulation's fit as an optimum whose refits start from it alone (`FRESH` of its starts are not used)."""
    phi_R = fits.phi_SR[s]
    return Optimum(
        phi_R, float(fits.objective_S[s]), 0.0, True, 0, 1, 1.0, 0, np.repeat(phi_R[None], 1 + FRESH, axis=0)
    )


def profiles(
    case: Case, prepared: Prepared, fits: Refits, target_SN: np.ndarray, limits: Mapping[str, np.ndarray]
) -> None:
    """How often the deviance of the true value is within a profile's interval, which is how often this holds it."""
    n, delta = len(prepared.target_N), prepared.law.delta
    for name, limit_S in limits.items():
        held = prepare(prepared.law, prepared.data, {**prepared.fixed, name: case.truth[name]})
        warm_WR = np.concatenate([true_phi(held, case.truth)[None], search(held).warm_SR[-3:]])
        without = refit(held, warm_WR, target_SN=target_SN)
        deviance_S = 2 * (log_likelihood(fits.objective_S, n, delta) - log_likelihood(without.objective_S, n, delta))
        student, chi_square = threshold(n, len(prepared.slots)), chi2.ppf(0.95, 1)
        shares = [float((deviance_S < limit).mean()) for limit in (limit_S, student, chi_square)]
        others = f"with {student:.2f} as threshold {shares[1]:.1%}, with 3.84 {shares[2]:.1%}"
        print(f"  {'profile':18s} {name:24s} {shares[0]:6.1%}   {others}", flush=True)


def main() -> None:
    """Run the chosen cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--laws", nargs="+", default=MAIN, choices=CASES, metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--noises", nargs="+", default=("0.003 nats", "0.3 %"), choices=NOISES)
    parser.add_argument("--kinds", nargs="+", default=("residual",), choices=("residual", "pair", "profile"))
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--whole", action="store_true", help="search each simulation from the law's own starts too")
    args = parser.parse_args()
    for name in args.laws:
        for noise in args.noises:
            simulate(name, noise, args.simulations, args.draws, tuple(args.kinds), args.whole)


if __name__ == "__main__":
    main()
