"""Speed of the fits: Table 1's four laws with 25 leave-one-out refits each, against the plain way, in one run.

The plain way is one `scipy.optimize.minimize(method="BFGS")` for each start of the full fit and of each refit, on the
same data, with numerical and with analytic gradients. It would take hours, so it is timed on a sample of refits and
starts and multiplied up; our objective of each sampled refit (which needs few starts: it knows the full fit's optima)
is compared with the plain way's best.

    OMP_NUM_THREADS=1 python benchmarks/fit_speed.py [--refits 3] [--starts 4]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from scipy.optimize import minimize

from upcycle.laws.forms import LAWS
from upcycle.laws.prepare import Prepared, prepare
from upcycle.laws.search import search, starts
from upcycle.laws.solve import huber
from upcycle.laws.validate import leave_one_out

NAMES = ("multiplicative", "multiplicative_no_interaction", "additive", "additive_no_interaction")
TRUTH = {"A": 400.0, "alpha1": 0.18, "alpha2": 0.2, "alpha3": 0.008, "E": 1.4}


def data() -> dict[str, np.ndarray]:
    """A 5 x 5 grid of the paper's budgets for 0.1B, losses from Equation 8 (Table 8's exponents) with 0.5 % noise."""
    tokens = 0.577e9 * 2.0 ** np.arange(5)
    D1, D2 = (column.ravel() for column in np.meshgrid(tokens, tokens, indexing="ij"))
    noise = np.exp(0.005 * np.random.default_rng(0).standard_normal(25))
    return {"D1": D1, "D2": D2, "loss": LAWS["multiplicative"].predict(TRUTH, {"D1": D1, "D2": D2}) * noise}


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


def report(seconds: dict[str, float]) -> str:
    """Seconds of each way and their ratios to ours."""
    ways = (
        f"{way} {seconds[way]:6.0f} s ({seconds[way] / seconds['ours']:.0f} x)" for way in ("numerical", "analytic")
    )
    return f"ours {seconds['ours']:6.2f} s   plain: {'   '.join(ways)}"


def main() -> None:
    """Time both ways and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--refits", type=int, default=3, help="leave-one-out refits of each law that the plain way is timed on"
    )
    parser.add_argument("--starts", type=int, default=4, help="starts of each of these")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    total = {"ours": 0.0, "numerical": 0.0, "analytic": 0.0}
    for name in NAMES:
        prepared = prepare(LAWS[name], data(), {})
        begin = time.process_time()
        optimum = search(prepared)
        loo = leave_one_out(prepared, optimum)
        ours = time.process_time() - begin
        start_SR, _ = starts(prepared)
        seconds = {"ours": ours, "numerical": 0.0, "analytic": 0.0}
        worst = -np.inf
        refits = rng.choice(25, args.refits, replace=False)
        for left_out in refits:
            kept = np.arange(25) != left_out
            ends = []
            for start in start_SR[rng.choice(len(start_SR), args.starts, replace=False)]:
                for way in ("numerical", "analytic"):
                    begin = time.process_time()
                    ends.append(plain(prepared, kept, start, analytic=way == "analytic"))
                    seconds[way] += time.process_time() - begin
            worst = max(worst, loo.refits.objective_S[left_out] / min(ends) - 1)
        # All starts of the full fit and of 25 refits, from the sample.
        factor = 26 * len(start_SR) / (args.refits * args.starts)
        seconds["numerical"] *= factor
        seconds["analytic"] *= factor
        print(f"{name:30s} {report(seconds)}   our objective / plain's best - 1 <= {worst:.1e}")
        for way in total:
            total[way] += seconds[way]
    print(f"{'all':30s} {report(total)}")


if __name__ == "__main__":
    main()
