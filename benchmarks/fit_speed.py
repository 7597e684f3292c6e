"""Speed of the fits, as ratios in one run against the plain way on the same data from the same 200 starts.

The task is the whole of Table 1: four laws, four mixtures, and for each of these 16 the full fit and 25 leave-one-out
refits. The plain way is one `scipy.optimize.minimize(method="BFGS")` for each start of each of these 416 fits: 83,200
minimisations, with numerical and, beside it, with analytic gradients. They would take hours, so the plain way is timed
on a sample of fits and starts of every law and mixture and multiplied up (`--full` runs all). Ours is timed whole.

No refit may be higher than the plain way's best (relative 1e-9): compared for all 400 refits, with analytic BFGS from
`--check` of the 200 starts each and from our own optimum.

    OMP_NUM_THREADS=1 python benchmarks/fit_speed.py [--refits 2] [--starts 3] [--check 2] [--full]
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize

from upcycle.laws.certificate.validate import bootstrap, leave_one_out
from upcycle.laws.forms import LAWS
from upcycle.laws.solver.prepare import Prepared, prepare, start_grid
from upcycle.laws.solver.search import refit, search
from upcycle.laws.solver.solve import huber

NAMES = ("multiplicative", "multiplicative_no_interaction", "additive", "additive_no_interaction")
MIXTURES = {
    "(4,1)": {"A": 9e3, "alpha1": 0.28, "alpha2": 0.29, "alpha3": 0.01, "E": 1.4},
    "(4,2)": {"A": 4e2, "alpha1": 0.19, "alpha2": 0.20, "alpha3": 0.008, "E": 1.4},
    "(8,1)": {"A": 1.2e4, "alpha1": 0.29, "alpha2": 0.30, "alpha3": 0.01, "E": 1.4},
    "(8,2)": {"A": 4e2, "alpha1": 0.18, "alpha2": 0.20, "alpha3": 0.008, "E": 1.4},
}
"""Table 8's exponents; A and E, which it does not print, are ours."""
TABLE_2 = {"A": 16.3, "alpha1": 0.043, "alpha2": 0.085, "alpha3": 7.98e-4, "B": 8.53, "beta": 0.112, "E": 0.165}
SIZES = (14.7e6, 44.2e6, 98.3e6, 232.6e6, 521.9e6, 1085.9e6)
TOKENS = 0.577e9 * 2.0 ** np.arange(5)
STARTS = 200


def grid(mixture: str, seed: int) -> dict[str, np.ndarray]:
    """A 5 x 5 grid of the paper's budgets for 0.1B, losses from Equation 8 with 0.5 % noise."""
    D1, D2 = (column.ravel() for column in np.meshgrid(TOKENS, TOKENS, indexing="ij"))
    noise = np.exp(0.005 * np.random.default_rng(seed).standard_normal(25))
    return {"D1": D1, "D2": D2, "loss": LAWS["multiplicative"].predict(MIXTURES[mixture], {"D1": D1, "D2": D2}) * noise}


def two_hundred(prepared: Prepared) -> np.ndarray:
    """The starts of both ways: 200 of the law's start grid, or all of it and jittered copies."""
    starts = start_grid(prepared)
    rng = np.random.default_rng(0)
    if len(starts) >= STARTS:
        return starts[rng.choice(len(starts), STARTS, replace=False)]
    more = starts[rng.integers(0, len(starts), STARTS - len(starts))]
    return np.concatenate([starts, more * (1 + 0.1 * rng.standard_normal(more.shape))])


def plain(prepared: Prepared, kept: np.ndarray, start: np.ndarray, *, analytic: bool) -> float:
    """One BFGS from one start; the objective where it ends. The floor is its logarithm, as usual."""
    model, target, delta = prepared.model, prepared.target_N, prepared.law.delta

    def objective(z: np.ndarray) -> float:
        phi = np.append(z[:-1], np.exp(z[-1]))
        with np.errstate(all="ignore"):
            return float(huber(model.value(phi[None])[0] - target, delta)[kept].sum()) / delta

    def gradient(z: np.ndarray) -> np.ndarray:
        phi = np.append(z[:-1], np.exp(z[-1]))
        with np.errstate(all="ignore"):
            at = model.derivatives(phi[None])
            pull = np.clip(at.value_SN[0] - target, -delta, delta) * kept / delta
        return np.asarray(pull @ at.slope_SNP[0]) * np.append(np.ones(len(z) - 1), phi[-1])

    z = np.append(start[:-1], np.log(max(start[-1], 1e-6)))
    end = minimize(objective, z, jac=gradient if analytic else None, method="BFGS", options={"gtol": 1e-8})
    return float(end.fun) * delta


@dataclass
class Times:
    """Seconds of CPU, and the worst of our objectives against the plain way's."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("ours", "numerical", "analytic"), 0.0))
    runs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("numerical", "analytic"), 0))
    worst: float = -np.inf

    def line(self, name: str, fits: int) -> str:
        """Seconds of each way for so many fits from 200 starts, and their ratios to ours."""
        words = []
        for way, runs in self.runs.items():
            whole = self.seconds[way] / runs * fits * STARTS
            words.append(f"{way} {whole:7.0f} s, {whole / self.seconds['ours']:5.0f} x")
        return f"{name:38s} ours {self.seconds['ours']:6.2f} s   plain: {'   '.join(words)}   worst {self.worst:+.0e}"


def measure(name: str, mixture: str, seed: int, args: argparse.Namespace) -> Times:
    """Both ways on one law and mixture."""
    rng, times = np.random.default_rng(seed), Times()
    prepared = prepare(LAWS[name], grid(mixture, seed), {})
    starts = two_hundred(prepared)
    begin = time.process_time()
    optimum = search(prepared, starts)
    loo = leave_one_out(prepared, optimum)
    times.seconds["ours"] = time.process_time() - begin
    timed = set(range(25) if args.full else rng.choice(25, args.refits, replace=False).tolist())
    for left_out in range(25):
        kept = np.arange(25) != left_out
        ends = [plain(prepared, kept, loo.refits.phi_SR[left_out], analytic=True)]
        count = STARTS if args.full else args.starts if left_out in timed else args.check
        for start in starts[rng.choice(STARTS, count, replace=False)]:
            for way in ("numerical", "analytic") if left_out in timed else ("analytic",):
                begin = time.process_time()
                ends.append(plain(prepared, kept, start, analytic=way == "analytic"))
                times.seconds[way] += time.process_time() - begin
                times.runs[way] += 1
        times.worst = max(times.worst, loo.refits.objective_S[left_out] / min(ends) - 1)
    return times


def bootstrap_of_equation_12(draws: int = 1000) -> str:
    """Refits of Equation 12 to 150 points of Table 2's law, noise 0.003 nats."""
    D1, D2, N1 = (column.ravel() for column in np.meshgrid(TOKENS, TOKENS, SIZES, indexing="ij"))
    data = {"D1": D1, "D2": D2, "N1": N1}
    loss = LAWS["joint"].predict(TABLE_2, data) + 0.003 * np.random.default_rng(0).standard_normal(150)
    words = []
    for fixed in ({}, {"E": 0.165}):
        prepared = prepare(LAWS["joint"], data | {"loss": loss}, fixed)
        optimum = search(prepared)
        residual_N = prepared.model.value(optimum.phi_R[None])[0] - prepared.target_N
        begin = time.process_time()
        refits = bootstrap(prepared, optimum, residual_N, draws=draws, seed=0)
        seconds = time.process_time() - begin
        again = refit_alone(prepared, optimum.phi_R, residual_N, refits.objective_S[:5])
        words.append(
            f"E {'held' if fixed else 'free'}: {seconds:.1f} s, {refits.converged_S.mean():.1%} converged, "
            f"five of them searched anew from the whole start grid: {again:+.0e} at most"
        )
    return f"{draws} bootstrap refits of Equation 12 on 150 points; " + "; ".join(words)


def refit_alone(prepared: Prepared, phi_R: np.ndarray, residual_N: np.ndarray, objective_S: np.ndarray) -> float:
    """How far the first draws' objectives lie above those of refits from many starts, relative."""
    fitted_N = prepared.model.value(phi_R[None])[0]
    pool = residual_N - np.median(residual_N)
    chosen = np.random.default_rng(0).integers(0, 150, size=(1000, 150))[: len(objective_S)]
    grid_SR = start_grid(prepared)
    warm = grid_SR[np.random.default_rng(1).choice(len(grid_SR), 60, replace=False)]
    anew = refit(prepared, warm, target_SN=fitted_N - pool[chosen])
    return float((objective_S / anew.objective_S - 1).max())


def main() -> None:
    """Time both ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--refits", type=int, default=2, help="refits of each law and mixture that the plain way is timed on"
    )
    parser.add_argument("--starts", type=int, default=3, help="starts of each of these")
    parser.add_argument(
        "--check", type=int, default=2, help="starts of each other refit, with analytic gradients, to compare"
    )
    parser.add_argument("--full", action="store_true", help="all refits and starts of the plain way: hours")
    args = parser.parse_args()
    total = Times()
    for name in NAMES:
        for seed, mixture in enumerate(MIXTURES):
            times = measure(name, mixture, seed, args)
            print(times.line(f"{name} {mixture}", 26), flush=True)
            for key in total.seconds:
                total.seconds[key] += times.seconds[key]
            for key in total.runs:
                total.runs[key] += times.runs[key]
            total.worst = max(total.worst, times.worst)
    print(total.line("Table 1: 16 laws x (1 + 25) fits", 26 * 16))
    print(bootstrap_of_equation_12())


if __name__ == "__main__":
    main()
