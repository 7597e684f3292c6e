"""How well a law predicts whole levels of an input that its fit has not seen: grouped folds and extrapolation.

Leaving out one point leaves its neighbours; leaving out all points of one size or one budget does not. All refits of a
law are one batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upcycle.laws.certificate.validate import condition_number, root_mean_squares
from upcycle.laws.solver.prepare import Prepared
from upcycle.laws.solver.search import Optimum, refit_folds
from upcycle.laws.terms import Array

MOST_LEVELS = 12
"""Levels of an input up to which each is a group of its own."""
FOLDS = 10
"""Groups of neighbouring levels where there are more."""
LEAST_LEVELS = 3
TWO_FROM = 6
"""Groups from which the two largest are left out together too."""
EXTRAPOLATED = ("D", "D2", "D1", "T2", "T1", "N", "N1", "N2")
"""Inputs that users extrapolate: tokens and sizes."""
CONDITION_LIMIT = 1e12
"""Condition number beyond which the points that are left do not determine the parameters."""


@dataclass(frozen=True)
class HeldOut:
    """Errors of points that a fit to the others had not seen."""

    groups: int
    """Groups of levels, each predicted by the fit to the others (1: of an extrapolation)."""
    points: int
    """Points predicted."""
    least: float
    """Smallest value of the input among them."""
    rms: float
    """Root mean square error of the response."""
    rms_log: float | None
    """The same of its logarithm; None for a line."""


@dataclass(frozen=True)
class HoldoutPlan:
    """Groups of points to be left out one after the other."""

    input: str
    levels: int
    """Groups that the input's levels make."""
    left_out_GN: NDArray[np.bool_]


def folds(prepared: Prepared, optimum: Optimum) -> dict[str, HeldOut | str]:
    """Grouped k-fold: for each input, every level predicted from the others; or why not, in words."""
    plans: dict[str, HoldoutPlan] = {}
    for name in prepared.law.inputs:
        group_N = grouping(prepared.data[name])
        count = int(group_N.max()) + 1
        plans[name] = HoldoutPlan(name, count, group_N == np.arange(count)[:, None])
    return _carry_out(prepared, optimum, plans)


def extrapolation(prepared: Prepared, optimum: Optimum) -> dict[str, HeldOut | str]:
    """The largest level of each input of tokens or size (and the largest two of many) predicted from the others."""
    plans: dict[str, HoldoutPlan] = {}
    for name in (name for name in EXTRAPOLATED if name in prepared.law.inputs):
        group_N = grouping(prepared.data[name])
        count = int(group_N.max()) + 1
        plans[name] = HoldoutPlan(name, count, (group_N == count - 1)[None])
        if count >= TWO_FROM:
            plans[f"{name}, two largest"] = HoldoutPlan(name, count, (group_N >= count - 2)[None])
    return _carry_out(prepared, optimum, plans)


def grouping(input_N: Array) -> NDArray[np.intp]:
    """Group of each point by its level of an input: levels in ascending order, neighbouring ones joined where many."""
    levels, level_N = np.unique(input_N, return_inverse=True)
    if len(levels) <= MOST_LEVELS:
        return level_N
    points_L = np.bincount(level_N)
    # By the points before a level's middle, so that groups hold about as many points each; none is left empty.
    wanted_L = ((np.cumsum(points_L) - points_L / 2) * FOLDS / len(input_N)).astype(int)
    _, joined_L = np.unique(wanted_L, return_inverse=True)
    return np.asarray(joined_L[level_N], dtype=np.intp)


def _carry_out(prepared: Prepared, optimum: Optimum, plans: Mapping[str, HoldoutPlan]) -> dict[str, HeldOut | str]:
    """Refit for all groups of all plans in one batch."""
    p = len(prepared.slots)
    results: dict[str, HeldOut | str] = {}
    possible: dict[str, HoldoutPlan] = {}
    for key, plan in plans.items():
        fewest = int((~plan.left_out_GN).sum(axis=1).min())
        if plan.levels < LEAST_LEVELS:
            results[key] = f"{plan.levels} levels of {plan.input}; at least {LEAST_LEVELS} are needed"
        elif fewest < p + 1:
            results[key] = f"{fewest} points would be left for {p} parameters; at least {p + 1} are needed"
        else:
            possible[key] = plan
    if possible:
        left_out_GN = np.concatenate([plan.left_out_GN for plan in possible.values()])
        phi_GR = refit_folds(prepared, optimum.warm_SR, 1.0 - left_out_GN).phi_SR
        residual_GN = prepared.model.value(phi_GR) - prepared.target_N
        first = 0
        for key, plan in possible.items():
            rows = slice(first, first + len(plan.left_out_GN))
            results[key] = _errors(prepared, plan, phi_GR[rows], residual_GN[rows])
            first = rows.stop
    return {key: results[key] for key in plans}


def _errors(prepared: Prepared, plan: HoldoutPlan, phi_GR: Array, residual_GN: Array) -> HeldOut | str:
    input_N = prepared.data[plan.input]
    for left_out_N, phi_R in zip(plan.left_out_GN, phi_GR, strict=True):
        if not condition_number(prepared, phi_R, ~left_out_N) < CONDITION_LIMIT:
            low, high = input_N[left_out_N].min(), input_N[left_out_N].max()
            where = f"= {low:.4g}" if low == high else f"from {low:.4g} to {high:.4g}"
            return f"without {plan.input} {where} the points left do not determine the parameters"
    left_out_N = np.asarray(plan.left_out_GN.any(axis=0))
    residual_N = np.where(plan.left_out_GN, residual_GN, 0.0).sum(axis=0)
    rms, rms_log = root_mean_squares(prepared, residual_N, left_out_N)
    if not math.isfinite(rms):
        return "a refit diverged: its prediction is not finite"
    return HeldOut(len(plan.left_out_GN), int(left_out_N.sum()), float(input_N[left_out_N].min()), rms, rms_log)
