"""How far a fit can be trusted: leave-one-out errors, bootstrap intervals, conditioning, the noise between seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from upcycle.laws.solver.prepare import Prepared, Slot
from upcycle.laws.solver.search import FRESH, Optimum, Refits, refit, refit_folds
from upcycle.laws.solver.solve import huber
from upcycle.laws.terms import Array
from upcycle.study.columns import EQUAL_SETTINGS

LEVEL = 0.95
FEW, MANY = 100, 500
"""Points from which leaving out takes fewer starts, and folds instead of single points."""
PULL = 1e-5
"""Weight with which a left-out point pulls its refit up or down, to find other optima: of a point that counts."""
EQUAL, NEAR = 1e-9, 1e-6
"""Relative differences of objectives up to which optima count as equal, and as near-equal."""
TINY_OBJECTIVE = 1e-18
"""Replaces the objective of a perfect fit, 0, where others are divided by it."""
TINY_LOSS = 1e-12
"""Replaces a simulated loss that is not above 0 and so has no logarithm."""


@dataclass(frozen=True)
class NearOptima:
    """How far refits whose objectives are within `tolerance` (relative) of the least differ in their predictions."""

    tolerance: float
    points: int
    """Left-out points whose predictions differ by more than a tenth of the leave-one-out RMS."""
    spread: float
    """The largest difference of two predictions of one point, in the unit of the response."""
    least_rms: float
    greatest_rms: float
    """RMS errors if each point took the nearest, or the farthest, of these predictions."""
    statement: str
    """All of this in words."""


@dataclass(frozen=True)
class LeaveOneOut:
    """Errors of points that their fit had not seen."""

    residual_N: Array
    """Predicted minus measured log response (response, for a line); of equal optima the middle of their range."""
    rms: float
    """Root mean square error of the response."""
    rms_log: float | None
    """Root mean square error of its logarithm; None for a line."""
    refits: Refits
    """A fit for each point left out, or for each fold of many points."""
    near: NearOptima | None = None
    """None where folds hold several points, and for one group of a joint fit."""


def leave_one_out(prepared: Prepared, optimum: Optimum, warm_SR: Array | None = None) -> LeaveOneOut:
    """Leave-one-out errors: each point predicted by the fit to all others, each refit from several starts.

    The time grows as the square of the points. From `FEW` points on, refits start from the full fit's distinct optima
    only; from `MANY` on, from the best, and points are left out in `MANY / 2` folds drawn at random. `warm_SR`: other
    starts.
    """
    n = len(prepared.target_N)
    fold_N = np.arange(n) if n < MANY else np.random.default_rng(0).permutation(np.arange(n) % (MANY // 2))
    if warm_SR is None:
        warm_SR = optimum.warm_SR if n < FEW else optimum.warm_SR[: -FRESH if n < MANY else 1]
    refits = refit_folds(prepared, warm_SR, 1.0 - (fold_N == np.arange(fold_N.max() + 1)[:, None]))
    residual_N = prepared.model.value(refits.phi_SR)[fold_N, np.arange(n)] - prepared.target_N
    if n >= MANY:
        return LeaveOneOut(residual_N, *root_mean_squares(prepared, residual_N), refits)
    refits, residual_KN, above_KN = _pulled(prepared, refits)
    low_N, high_N = _range(residual_KN, above_KN <= EQUAL)
    equal_N = (low_N + high_N) / 2
    rms, rms_log = root_mean_squares(prepared, equal_N)
    return LeaveOneOut(equal_N, rms, rms_log, refits, _near_optima(prepared, residual_KN, above_KN <= NEAR, rms))


def _pulled(prepared: Prepared, refits: Refits) -> tuple[Refits, Array, Array]:
    """Each refit without one point, and two more that the point pulls up and down with the weight `PULL`.

    A valley of equal objectives is walked to its ends so, and a lower end is found. Returned are the lowest refits, the
    residuals of the left-out points [3, N], the lowest refits' first, and how far (relative) each objective lies above
    the least [3, N].
    """
    n = len(prepared.target_N)
    own = np.eye(n, dtype=bool)
    ends_KNR = [refits.phi_SR]
    for side in (1.0, -1.0):
        target_NN = np.where(own, prepared.model.value(refits.phi_SR) + side, prepared.target_N)
        pulled = refit(prepared, refits.phi_SR[:, None], target_SN=target_NN, weight_SN=np.where(own, PULL, 1.0))
        ends_KNR.append(pulled.phi_SR)
    lowest = refit(prepared, np.stack(ends_KNR, axis=1), weight_SN=1.0 - own)
    ends_KNR[0] = lowest.phi_SR
    residual_KNN = prepared.model.value(np.stack(ends_KNR)) - prepared.target_N
    objective_KN = ((1.0 - own) * huber(residual_KNN, prepared.law.delta)).sum(axis=-1)
    above_KN = (objective_KN - objective_KN.min(axis=0)) / np.maximum(objective_KN.min(axis=0), TINY_OBJECTIVE)
    return lowest, residual_KNN[:, own], above_KN


def _range(value_KN: Array, among_KN: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Least and greatest of some of the values of each point."""
    low_N = np.where(among_KN, value_KN, np.inf).min(axis=0)
    return low_N, np.where(among_KN, value_KN, -np.inf).max(axis=0)


def _near_optima(prepared: Prepared, residual_KN: Array, near_KN: NDArray[np.bool_], rms: float) -> NearOptima:
    error_KN = residual_KN if prepared.law.line else prepared.response_N * np.expm1(residual_KN)
    low_N, high_N = _range(error_KN, near_KN)
    least, greatest = (float(np.sqrt(np.mean(part_N**2))) for part_N in _range(np.abs(error_KN), near_KN))
    points, spread = int((high_N - low_N > rms / 10).sum()), float((high_N - low_N).max())
    words = f"refits within {NEAR:g} (relative) of the least objective predict all left-out points alike"
    if points:
        words = (
            f"refits within {NEAR:g} (relative) of the least objective predict {points} of {len(low_N)} left-out "
            f"points differently, by up to {spread:.3g}: the leave-one-out RMS of {rms:.3g} could be {least:.3g} to "
            f"{greatest:.3g}"
        )
    return NearOptima(NEAR, points, spread, least, greatest, words)


def root_mean_squares(
    prepared: Prepared, residual_N: Array, among_N: NDArray[np.bool_] | None = None
) -> tuple[float, float | None]:
    """RMS of the response and of its logarithm, from residuals of what the law fits; `among_N`: only of these."""
    among_N = np.ones(len(residual_N), dtype=bool) if among_N is None else among_N
    rms_fitted = float(np.sqrt(np.mean(residual_N[among_N] ** 2)))
    if prepared.law.line:
        return rms_fitted, None
    error_N = prepared.response_N * np.expm1(residual_N)
    return float(np.sqrt(np.mean(error_N[among_N] ** 2))), rms_fitted


def residual_pool(residual_N: Array) -> Array:
    """Leave-one-out residuals with their median taken out: what the residual bootstrap draws from."""
    return np.asarray(residual_N - np.median(residual_N))


def resampled(fitted_N: Array, pool_N: Array, *, draws: int, seed: int) -> Array:
    """Targets [B, N]: a fitted curve plus residuals (fitted minus measured) drawn with replacement."""
    chosen = np.random.default_rng(seed).integers(0, len(pool_N), size=(draws, len(fitted_N)))
    return np.asarray(fitted_N - pool_N[chosen])


def bootstrap(
    prepared: Prepared,
    optimum: Optimum,
    residual_N: Array,
    *,
    draws: int,
    seed: int,
    constant_BN: Array | None = None,
) -> Refits:
    """Residual bootstrap: refits to the fitted curve plus residuals drawn with replacement.

    `constant_BN`: what fixed parameters contribute to the floor in each draw, where that is uncertain itself.

    The residuals are the leave-one-out ones: a Huber fit with a small delta passes through as many points as it has
    parameters, and their own residuals, all nearly 0, would make every interval too narrow. `benchmarks/coverage.py`
    measures how often the intervals hold the truth.
    """
    fitted_N = prepared.model.value(optimum.phi_R[None])[0]
    target_BN = resampled(fitted_N, residual_pool(residual_N), draws=draws, seed=seed)
    return refit(prepared, optimum.warm_SR[:-FRESH], target_SN=target_BN, constant_SN=constant_BN)


def bootstrap_pairs(prepared: Prepared, optimum: Optimum, *, draws: int, seed: int) -> Refits:
    """Pair bootstrap: refits to points drawn with replacement, each with its inputs; a point's count is its weight."""
    n = len(prepared.target_N)
    weight_BN = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    return refit(prepared, optimum.warm_SR[:-FRESH], weight_SN=weight_BN)


def bootstrap_noise(prepared: Prepared, optimum: Optimum, noise: float, *, draws: int, seed: int) -> Refits:
    """Parametric bootstrap: refits to the fitted curve plus Gaussian noise of a known standard deviation of the loss.

    Shows how far the noise between seeds alone moves the parameters; it excludes the error of the law's form.
    The law's response must be the loss.
    """
    fitted_N = np.exp(prepared.model.value(optimum.phi_R[None])[0])
    noise_BN = noise * np.random.default_rng(seed).standard_normal((draws, len(fitted_N)))
    target_BN = np.log(np.maximum(fitted_N + noise_BN, TINY_LOSS))
    return refit(prepared, optimum.warm_SR[:-FRESH], target_SN=target_BN)


def slot_name(slot: Slot) -> str:
    """A free number's name: its parameter, and of which group where groups differ."""
    return slot.parameter.name if slot.group is None else f"{slot.parameter.name} of group {slot.group + 1}"


def intervals_by_name(prepared: Prepared, values_BP: Array) -> dict[str, tuple[float, float]]:
    """Central 95 % of the draws of every free parameter and, where there are no groups, of what follows from them."""
    columns = {slot_name(slot): values_BP[:, k] for k, slot in enumerate(prepared.slots)}
    if prepared.group_N is None:
        names, box = list(columns), prepared.box
        rows = [dict(prepared.fixed) | dict(zip(names, row, strict=True)) for row in values_BP.tolist()]
        columns |= {d.name: np.array([d.value(row, box) for row in rows]) for d in prepared.law.derived}
    with np.errstate(invalid="ignore"):
        ends = np.quantile(np.stack(list(columns.values()), axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {name: (low, high) for name, low, high in zip(columns, *ends.tolist(), strict=True)}


def condition_number(prepared: Prepared, phi_R: Array, among_N: NDArray[np.bool_] | None = None) -> float:
    """Ratio of the extreme eigenvalues of the Gauss-Newton matrix in scaled variables, of all points or of some.

    A variable at a wall is left out.
    """
    slope_NR = prepared.model.derivatives(phi_R[None]).slope_SNP[0]
    slope_NR = slope_NR if among_N is None else slope_NR[among_N]
    free = (phi_R > prepared.lower_R) & (phi_R < prepared.upper_R)
    if not free.any():
        return 1.0
    if not np.isfinite(slope_NR).all():
        return math.inf
    singular = np.linalg.svd(slope_NR[:, free], compute_uv=False)
    if slope_NR.shape[0] < free.sum() or singular[-1] == 0:
        return math.inf
    return float((singular[0] / singular[-1]) ** 2)


@dataclass(frozen=True)
class SeedNoise:
    """The spread of a loss over seeds, pooled over the settings that were repeated."""

    deviation: float
    """Standard deviation of one loss, nats."""
    freedom: int
    """Degrees of freedom: runs minus settings."""
    points: int
    """Settings with more than one seed."""


def seed_noise(losses: pd.DataFrame) -> SeedNoise | None:
    """Pooled standard deviation of the losses of runs that differ in their seed alone; None where none was repeated.

    Rows of equal settings and equal seed differ in something else (an ablation) and are left out.
    """
    squares, freedom, points = 0.0, 0, 0
    for _, group in losses.groupby(list(EQUAL_SETTINGS), dropna=False):
        if len(group) > 1 and group["seed"].is_unique:
            squares += float(((group["loss"] - group["loss"].mean()) ** 2).sum())
            freedom, points = freedom + len(group) - 1, points + 1
    return SeedNoise(math.sqrt(squares / freedom), freedom, points) if freedom else None
