"""Huber's loss as a likelihood, and the information criteria that follow.

Minimising a sum of rho(r) is maximising the likelihood of independent residuals of the density
p(r | s) = exp(-rho(r) / s) / Z(s): Gaussian within delta, exponential tails outside. The law's optimum does not depend
on the scale s, which has its own maximum of likelihood. Residuals are of what the law fits: the log response (the
response, for a line).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import erf

from upcycle.laws.terms import Array


def log_partition(scale_S: Array, delta: float) -> Array:
    """ln Z(s): Z is the integral of exp(-rho(r) / s) over all residuals r."""
    body, tails = _body_and_tails(scale_S, delta)
    return np.asarray(np.log(body + tails))


def _body_and_tails(scale_S: Array, delta: float) -> tuple[Array, Array]:
    """The two parts of Z: within delta, and outside it."""
    x_S = delta / np.sqrt(2 * scale_S)
    body_S = np.sqrt(2 * np.pi * scale_S) * erf(x_S)
    return body_S, 2 * scale_S / delta * np.exp(-(np.minimum(x_S, 30.0) ** 2))


def best_scale(objective_S: Array, n: int, delta: float) -> Array:
    """The scale of the highest likelihood: the s at which the mean of rho under p(r | s) is that of the data.

    That mean is s/2 for a Gaussian and s for exponential tails, and grows with s: bisected between.
    """
    mean_S = np.asarray(objective_S, dtype=np.float64) / n
    low_S, high_S = mean_S, 2 * mean_S
    for _ in range(60):
        middle_S = (low_S + high_S) / 2
        body_S, tails_S = _body_and_tails(np.maximum(middle_S, 1e-300), delta)
        too_low = middle_S * (body_S / 2 + tails_S) < mean_S * (body_S + tails_S)
        low_S, high_S = np.where(too_low, middle_S, low_S), np.where(too_low, high_S, middle_S)
    return (low_S + high_S) / 2


def log_likelihood(objective_S: Array, n: int, delta: float) -> Array:
    """The largest log likelihood of residuals whose Huber losses sum to `objective_S`; infinite for a perfect fit."""
    objective_S = np.asarray(objective_S, dtype=np.float64)
    scale_S = np.maximum(best_scale(objective_S, n, delta), 1e-300)
    return np.where(objective_S > 0, -objective_S / scale_S - n * log_partition(scale_S, delta), np.inf)


@dataclass(frozen=True)
class Criteria:
    """How likely the data are under the best fit, and what its parameters cost."""

    log_likelihood: float
    scale: float
    aic: float
    aicc: float
    """Infinite where there are too few points for the correction."""
    bic: float


def criteria(objective: float, n: int, parameters: int, delta: float) -> Criteria:
    """Akaike's criterion, the same corrected for few points, and the Bayesian one; the scale counts as a parameter."""
    k = parameters + 1
    highest = float(log_likelihood(np.array(objective), n, delta))
    aic = 2 * k - 2 * highest
    return Criteria(
        log_likelihood=highest,
        scale=float(best_scale(np.array(objective), n, delta)),
        aic=aic,
        aicc=aic + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf,
        bic=k * float(np.log(n)) - 2 * highest,
    )
