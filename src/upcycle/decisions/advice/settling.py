"""Which single affordable run tells most about upcycling against training from scratch.

The laws' draws are the prior: the run whose predicted loss correlates best with the difference of the two losses is the
best one. `upcycle design` asks another question, which runs sharpen D* of a sweep that is not trained yet: it has no
draws, so it works with the information of the planned runs (`design/candidates.py`).

D, D1, D2 in tokens, N1 in non-embedding parameters, losses in nats. Shape suffix: B draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upcycle.decisions.curves import Curve, ThreeLaws, central_95
from upcycle.laws.terms import Array

SHARE_OF_BUDGET = 0.1
"""A run may cost this share of the budget that the question is about."""
SHARES = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)
"""Sizes that are tried, as shares of N1, and costs, as shares of the most that a run may cost."""
NEARLY_BEST = 0.9
"""A run nearer in size, or a cheaper one, is taken if it tells at least this share of what the best one tells."""
LEAST_TOKENS_PER_PARAMETER = 2.0
"""Shorter runs are not tried: warm-up alone takes about one token a parameter (Table 5)."""
LEAST_TOLD = 0.05
"""A run that tells less of the variance than this is not worth naming."""


@dataclass(frozen=True)
class AffordableRun:
    """A run that could be made."""

    kind: Literal["scratch", "upcycled"]
    n1: float
    d1: float | None
    """Tokens of the dense parent; None from scratch."""
    d2: float
    """Tokens of the mixture."""
    trains_dense: bool
    """Whether the dense parent has to be trained too; its FLOPs are then counted in."""
    flops: float


@dataclass(frozen=True)
class SettlingRun:
    """A run worth making, and what its loss would say."""

    run: AffordableRun
    about_tokens: float
    """The D2 whose question it would settle."""
    gpu_hours: float
    share_of_budget: float
    loss: float
    """Predicted loss, mean of the draws."""
    band: tuple[float, float]
    noise: float
    """Standard deviation of a measured loss about the law."""
    told: float
    """Share of the variance of (upcycled - scratch) that the measured loss would take away."""
    spread_before: float
    """Standard deviation over the draws of (upcycled - scratch), in nats."""
    spread_after: float
    turning_loss: float | None
    """The measured loss at which both would be equal; None: it is implausible (beyond 3 standard deviations)."""
    lower_speaks_for: Literal["upcycle", "scratch"]
    """Which option a loss lower than expected favours."""


def settling_run(
    three: ThreeLaws, d1: float, d2: float, n1: float, *, noise: float, flops_per_second: float
) -> SettlingRun | None:
    """The affordable run whose measured loss would tell most about L_up(D1, D2) - L_moe(D2) at N1.

    What a loss tells is its squared correlation, over the draws and with its noise, with that difference. Affordable
    is a tenth of the budget 6 N2 D2. Of the runs that tell nearly as much as the best one, that nearest to N1 in size
    is taken, then the cheapest. None without draws, or when no affordable run tells a twentieth of the variance.
    """
    if three.n_draws < 2:
        return None
    moe, budget = three.need("moe"), 6 * three.active_ratio * n1 * d2
    gap_B = three.upcycled.loss_draws(D1=d1, D2=d2, N1=n1) - moe.loss_draws(D=d2, N1=n1)
    candidates = list(_candidates(three, d1, n1, SHARE_OF_BUDGET * budget))
    losses = [_loss_draws(three, candidate) for candidate in candidates]
    told = [_told(loss_B, gap_B, noise) for loss_B in losses]
    if max(told, default=0.0) < LEAST_TOLD:
        return None
    good = [i for i, share in enumerate(told) if share >= NEARLY_BEST * max(told)]
    chosen = min(good, key=lambda i: (-candidates[i].n1, candidates[i].flops))
    run, loss_B = candidates[chosen], losses[chosen]
    mean, gap, spread = float(loss_B.mean()), float(gap_B.mean()), float(gap_B.std())
    deviation = float(loss_B.var() + noise**2) ** 0.5
    slope = _covariance(loss_B, gap_B) / deviation**2
    turning = mean - gap / slope
    return SettlingRun(
        run=run,
        about_tokens=d2,
        gpu_hours=run.flops / flops_per_second / 3600,
        share_of_budget=run.flops / budget,
        loss=mean,
        band=central_95(loss_B),
        noise=noise,
        told=told[chosen],
        spread_before=spread,
        spread_after=spread * (1 - told[chosen]) ** 0.5,
        turning_loss=turning if abs(turning - mean) <= 3 * deviation else None,
        lower_speaks_for="upcycle" if slope > 0 else "scratch",
    )


def _loss_draws(three: ThreeLaws, run: AffordableRun) -> Array:
    """Predicted loss [B] of a candidate."""
    if run.d1 is None:
        return three.need("moe").loss_draws(D=run.d2, N1=run.n1)
    return three.upcycled.loss_draws(D1=run.d1, D2=run.d2, N1=run.n1)


def _covariance(loss_B: Array, gap_B: Array) -> float:
    return float(np.mean((loss_B - loss_B.mean()) * (gap_B - gap_B.mean())))


def _told(loss_B: Array, gap_B: Array, noise: float) -> float:
    """Share of the variance of the gap that a measurement of this loss takes away (linear regression)."""
    variances = float(gap_B.var()) * (float(loss_B.var()) + noise**2)
    return min(1.0, _covariance(loss_B, gap_B) ** 2 / variances) if variances > 0 else 0.0


def _candidates(three: ThreeLaws, d1: float, n1: float, most: float) -> Iterator[AffordableRun]:
    """Runs of at most `most` FLOPs, none shorter than the data: at N1 and at smaller sizes.

    At N1 the dense model is there; below, its counterpart has to be trained as well, on D1 tokens or on as many per
    parameter.
    """
    moe = three.need("moe")
    for size in SHARES if moe.depends_on_size and three.upcycled.depends_on_size else (1.0,):
        n, here = size * n1, size == 1.0
        per_token, least = 6 * three.active_ratio * n, LEAST_TOKENS_PER_PARAMETER * n
        for flops in (share * most for share in SHARES):
            if flops / per_token >= max(least, _shortest(moe, "D")):
                yield AffordableRun("scratch", n, None, flops / per_token, False, flops)
            for parent in (d1,) if here else (d1, size * d1):
                d2 = (flops - (0.0 if here else 6 * n * parent)) / per_token
                if d2 >= max(least, _shortest(three.upcycled, "D2")) and parent >= _shortest(three.upcycled, "D1"):
                    yield AffordableRun("upcycled", n, parent, d2, not here, flops)


def _shortest(curve: Curve, name: str) -> float:
    """The fewest tokens that the data have of D, D1 or D2."""
    return curve.box[name][0] if name in curve.box else 0.0
