"""The plain way to fit, as a reference: scipy's BFGS on the sum of Huber losses, one start after another."""

import numpy as np
from scipy.optimize import minimize

from upcycle.laws.law import Law
from upcycle.laws.solver.prepare import prepare


def huber_sum(law: Law, data: dict[str, np.ndarray], values: dict[str, float]) -> float:
    """The objective, from its definition."""
    size = np.abs(np.log(law.predict(values, data)) - np.log(data[law.response]))
    return float(np.where(size <= law.delta, size**2 / 2, law.delta * (size - law.delta / 2)).sum())


def scipy_fit(law: Law, data: dict[str, np.ndarray], starts: int, seed: int = 0) -> dict[str, float]:
    """The best of several BFGS runs over (scaled) parameters with ln E in E's place, as the paper has it."""
    prepared = prepare(law, data, {})
    names = [slot.parameter.name for slot in prepared.slots]
    floor = names.index("E")
    target = prepared.target_N

    def objective(z: np.ndarray) -> tuple[float, np.ndarray]:
        phi, slope = z.copy(), np.ones_like(z)
        phi[-1] = slope[-1] = np.exp(z[-1])
        at = prepared.model.derivatives(phi[None])
        residual = at.value_SN[0] - target
        size = np.abs(residual)
        total = np.where(size <= law.delta, size**2 / 2, law.delta * (size - law.delta / 2)).sum()
        # Scaled, or BFGS stops at its first step: delta makes gradients tiny.
        return total / law.delta, np.clip(residual, -law.delta, law.delta) @ at.slope_SNP[0] * slope / law.delta

    rng = np.random.default_rng(seed)
    best = None
    for _ in range(starts):
        theta = np.zeros(len(names))
        for k, name in enumerate(names):
            draw = {"scale": rng.uniform(0, 8), "exponent": rng.uniform(0, 0.5), "offset": rng.uniform(18, 22)}
            theta[k] = draw.get(law.parameter(name).kind, 1.0)
        theta[[k for k, name in enumerate(names) if name == "alpha3"]] = 0.0
        z = prepared.scale_RP @ theta
        z[-1] = np.log(rng.uniform(0.1, 0.9))
        with np.errstate(all="ignore"):
            end = minimize(objective, z, jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 1000})
        if np.isfinite(end.fun) and (best is None or end.fun < best.fun):
            best = end
    assert best is not None
    phi = best.x.copy()
    phi[-1] = np.exp(best.x[-1])
    assert floor == len(names) - 1
    return dict(zip(names, prepared.values(phi[None])[0], strict=True))
