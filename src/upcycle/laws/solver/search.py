"""From a prepared law to its optimum: many starts, then the same for every leave-one-out refit and bootstrap draw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from upcycle.bars import count_work
from upcycle.laws.solver.prepare import Prepared, start_grid
from upcycle.laws.solver.solve import huber, minimise
from upcycle.laws.terms import Array

LOWEST, SPREAD = 32, 32
"""Of the whole start grid, how many of the lowest are descended from, and how many of the others."""
FRESH = 4
"""Starts of a refit besides the full fit's optima."""
OPTIMA = 3
"""Distinct optima of the full fit that a refit starts from."""
EXCHANGED = 3
"""Ends of other folds, those lowest for its own points, that each fold starts from again."""
LOWER = 1e-10
"""Relative gain of a fold above which all folds exchange their ends once more."""
BATCH = 100_000
"""Residuals solved side by side; more are solved in turn, to bound memory."""
AGREE = 1e-6
"""Relative difference of objectives up to which two ends count as one optimum."""


@dataclass(frozen=True)
class Optimum:
    """The lowest end of all starts."""

    phi_R: Array
    objective: float
    gradient: float
    """Largest component of the gradient in scaled variables, relative to all points pulling one way."""
    converged: bool
    grid: int
    """Starts whose objective was evaluated."""
    starts: int
    """Starts that were descended from."""
    agree: float
    """Share of these that end at this objective."""
    iterations: int
    warm_SR: Array
    """Starts for refits of slightly different data: the distinct optima, lowest first, and a few fresh ones."""


class Refits(NamedTuple):
    """The same fit with other weights or targets, a row each."""

    phi_SR: Array
    objective_S: Array
    converged_S: NDArray[np.bool_]

    def first(self, count: int) -> Refits:
        """The first rows."""
        return Refits(self.phi_SR[:count], self.objective_S[:count], self.converged_S[:count])


def search(prepared: Prepared) -> Optimum:
    """Evaluate the whole start grid, descend from the lowest and from a spread of the others, keep the lowest end."""
    grid_SR = start_grid(prepared)
    start_SR = starts(prepared, grid_SR)
    end = minimise(prepared.problem(), start_SR)
    ranked = np.argsort(end.objective_S, kind="stable")
    best = int(ranked[0])
    lowest = float(end.objective_S[best])
    # Of ends at one objective, the one with the smallest gradient is the best converged.
    equal = np.flatnonzero(end.objective_S <= lowest * (1 + 1e-12))
    best = int(equal[np.argmin(end.gradient_S[equal])])
    agree = end.objective_S <= lowest * (1 + AGREE) + 1e-24
    distinct = [best]
    for k in ranked:
        if len(distinct) < OPTIMA and end.objective_S[k] > end.objective_S[distinct[-1]] * (1 + 1e-3) + 1e-24:
            distinct.append(int(k))
    fresh = start_SR[np.linspace(0, len(start_SR) - 1, FRESH).astype(int)]
    return Optimum(
        phi_R=end.theta_SP[best],
        objective=float(end.objective_S[best]),
        gradient=float(end.gradient_S[best]),
        converged=bool(end.converged_S[best]),
        grid=len(grid_SR),
        starts=len(start_SR),
        agree=float(agree.mean()),
        iterations=end.iterations,
        warm_SR=np.concatenate([end.theta_SP[distinct], fresh]),
    )


def starts(prepared: Prepared, grid_SR: Array) -> Array:
    """Where to descend from [S, R]: the lowest of the start grid and a spread of the others."""
    order = np.argsort(prepared.problem().objective(grid_SR), kind="stable")
    others = order[LOWEST:]
    spread = others[np.linspace(0, len(others) - 1, min(SPREAD, len(others))).astype(int)]
    return grid_SR[np.concatenate([order[:LOWEST], spread])]


def refit(
    prepared: Prepared,
    warm_WR: Array,
    *,
    target_SN: Array | None = None,
    weight_SN: Array | None = None,
    constant_SN: Array | None = None,
) -> Refits:
    """Fit again for each row of targets, weights or fixed floors, from each warm start; the lowest end of each row.

    Warm starts are those of all rows [W, R], or each row's own [S, W, R].
    """
    of_rows = (target_SN, weight_SN, constant_SN)
    count = max(len(rows) for rows in of_rows if rows is not None)
    warm = warm_WR.shape[-2]
    start_SWR = np.broadcast_to(warm_WR, (count, *warm_WR.shape[-2:]))
    chunks = math.ceil(count * warm * len(prepared.target_N) / BATCH)
    parts = []
    count_work(expected=count)
    for chunk in np.array_split(np.arange(count), chunks):
        given = (None if rows is None else np.repeat(rows[chunk], warm, axis=0) for rows in of_rows)
        problem = prepared.problem(*given)
        end = minimise(problem, start_SWR[chunk].reshape(len(chunk) * warm, -1))
        best = end.objective_S.reshape(len(chunk), warm).argmin(axis=1) + np.arange(len(chunk)) * warm
        parts.append(Refits(end.theta_SP[best], end.objective_S[best], end.converged_S[best]))
        count_work(done=len(chunk))
    return Refits(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def refit_folds(prepared: Prepared, warm_WR: Array, weight_FN: Array) -> Refits:
    """Fit again for each row of weights: from each warm start, then from the ends of the other rows.

    Folds differ in few points, so the optimum of one lies near an optimum of another that its own starts may all miss.
    Each starts from the `EXCHANGED` ends of others that are lowest for it, until no fold gains.
    """
    best, folds = refit(prepared, warm_WR, weight_SN=weight_FN), len(weight_FN)
    gains = folds > 1
    while gains:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            loss_FN = huber(prepared.model.value(best.phi_SR) - prepared.target_N, prepared.law.delta)
            objective_FF = np.nan_to_num(weight_FN @ loss_FN.T, nan=np.inf)  # of each fold at the end of each
        np.fill_diagonal(objective_FF, np.inf)
        lowest_FW = np.argsort(objective_FF, axis=1, kind="stable")[:, : min(EXCHANGED, folds - 1)]
        again = refit(prepared, best.phi_SR[lowest_FW], weight_SN=weight_FN)
        gains = bool((again.objective_S < best.objective_S * (1 - LOWER)).any())
        lower = again.objective_S < best.objective_S
        best = Refits(
            np.where(lower[:, None], again.phi_SR, best.phi_SR),
            np.where(lower, again.objective_S, best.objective_S),
            np.where(lower, again.converged_S, best.converged_S),
        )
    return best
