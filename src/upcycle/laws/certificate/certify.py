"""The part of a fit's certificate that takes refits: likelihood, profiles, folds, extrapolation, bootstrap intervals.

Everything is ready for JSON: an entry that could not be computed is `{"skipped": "why, in words"}`, an open end None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from upcycle.files import plain
from upcycle.laws.certificate.holdout import HeldOut, extrapolation, folds
from upcycle.laws.certificate.likelihood import criteria
from upcycle.laws.certificate.profile import INTERACTIONS, PROFILED, calibrated_threshold, interaction_test, profile
from upcycle.laws.certificate.validate import (
    LeaveOneOut,
    bootstrap_noise,
    bootstrap_pairs,
    intervals_by_name,
    residual_pool,
)
from upcycle.laws.solver.prepare import Prepared
from upcycle.laws.solver.search import Optimum, Refits
from upcycle.laws.terms import Array

MOST_RESIDUALS = 100_000
"""Of one kind of bootstrap: draws x points. Draws are fewer where there are more than 500 points."""
FEWEST_DRAWS = 40
PERFECT = 1e-10
"""Root mean square residual below which there is no noise, only rounding, and so no likelihood."""


def certify(
    prepared: Prepared,
    optimum: Optimum,
    loo: LeaveOneOut,
    *,
    residual: Refits,
    drawn_floor: bool = False,
    draws: int,
    seed: int,
    noise: float | None = None,
) -> dict[str, Any]:
    """Information criteria, profiles, test of the interaction, folds, extrapolation and three kinds of intervals.

    `residual`: the residual bootstrap of these draws (at least one) and this seed; with `drawn_floor` each of them held
    an E of its own, as in the second step of a two-step fit. `noise`: the standard deviation of a loss between seeds,
    in nats, if it was measured.

    Keys: aic, aicc, bic, log_likelihood, scale, profile, interaction (for laws with one), folds, extrapolation,
    intervals, draws, loo_refits.
    """
    n, p = len(prepared.target_N), len(prepared.slots)
    if prepared.confounded:
        return {"skipped": f"the inputs of these points cannot tell {', '.join(prepared.confounded)} apart"}
    count = min(draws, max(FEWEST_DRAWS, MOST_RESIDUALS // n))
    pool_N = residual_pool(loo.residual_N)
    names = [slot.parameter.name for slot in prepared.slots if slot.group is None]
    # Thresholds of profiles are of one E, so draws with an E of their own are no use to them.
    same_floor = None if drawn_floor else residual.first(count)
    interactions = [name for name in names if name in INTERACTIONS]
    perfect = optimum.objective <= n * PERFECT**2 / 2
    no_noise = {"skipped": "the law passes through every point: there is no noise to judge by"}
    content: dict[str, Any] = {
        **asdict(criteria(optimum.objective, n, p, prepared.law.delta)),
        "profile": {
            name: no_noise if perfect else _profile(prepared, optimum, name, pool_N, same_floor, draws=count, seed=seed)
            for name in names
            if name in PROFILED
        },
        "folds": _held_out(folds(prepared, optimum)),
        "extrapolation": _held_out(extrapolation(prepared, optimum)),
        "intervals": _intervals(prepared, optimum, residual, draws=count, seed=seed, noise=noise),
        "draws": {"asked": draws, "of_each_kind": count},
        "loo_refits": len(loo.refits.objective_S),
    }
    if interactions and perfect:
        content["interaction"] = no_noise
    elif interactions:
        test = interaction_test(prepared, optimum, interactions[0], pool_N, draws=count, seed=seed)
        content["interaction"] = asdict(test)
    return dict(plain(content))


def _profile(
    prepared: Prepared, optimum: Optimum, name: str, pool_N: Array, residual: Refits | None, *, draws: int, seed: int
) -> dict[str, Any]:
    drop = calibrated_threshold(prepared, optimum, name, pool_N, draws=draws, seed=seed, full=residual)
    found = profile(prepared, optimum, name, drop)
    return {
        "value": found.values.tolist(),
        "objective": found.objective.tolist(),
        "deviance": found.deviance.tolist(),
        "interval": list(found.interval),
        "threshold": found.threshold,
    }


def _held_out(results: Mapping[str, HeldOut | str]) -> dict[str, Any]:
    return {key: {"skipped": item} if isinstance(item, str) else asdict(item) for key, item in results.items()}


def _intervals(
    prepared: Prepared, optimum: Optimum, residual: Refits, *, draws: int, seed: int, noise: float | None
) -> dict[str, Any]:
    """95 % intervals of each kind, with the draws whose fit did not converge (they count all the same)."""
    kinds = {"residual": residual, "pair": bootstrap_pairs(prepared, optimum, draws=draws, seed=seed)}
    if noise is not None and prepared.law.response == "loss":
        kinds["seed_noise"] = bootstrap_noise(prepared, optimum, noise, draws=draws, seed=seed)
    content: dict[str, Any] = {
        kind: intervals_by_name(prepared, prepared.values(refits.phi_SR)) for kind, refits in kinds.items()
    }
    content["failed"] = {kind: int((~refits.converged_S).sum()) for kind, refits in kinds.items()}
    return content
