"""How to spend FLOPs: size and tokens of a model from scratch, of upcycling a given dense model, and of both stages.

FLOPs are 6 N D with N the parameters that a token uses: N1 for a dense model, N2 = active_ratio N1 for a mixture. The
closed forms hold for Equations 3 and 12; other laws are minimised numerically, within D_LOW..D_HIGH tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from upcycle.decisions.curves import Curve, ThreeLaws, as_positive, central_95
from upcycle.decisions.roots import all_roots
from upcycle.errors import UserError
from upcycle.laws.terms import Array

D_LOW, D_HIGH = 1e4, 1e18
"""Tokens of either stage between which an optimum is sought."""
CLOSED_FORM = ("joint", "joint_no_interaction")
"""Laws of upcycled losses for which Equation 14 holds."""


@dataclass(frozen=True)
class OptimalAllocation:
    """The best model of a budget: `d` are the tokens of the stage that the budget pays for."""

    n1: float
    d: float
    loss: float
    at_bound: tuple[str, ...] = ()
    """What ended at D_LOW or D_HIGH (`D2`): then the true optimum lies beyond, where these laws do not hold."""


@dataclass(frozen=True)
class TwoStage:
    """The best way to spend a budget on a dense model and its upcycling."""

    n1: float
    d1: float
    d2: float
    loss: float
    at_bound: tuple[str, ...] = ()
    """Which of `D1`, `D2` ended at D_LOW or D_HIGH: then the true optimum lies beyond."""


@dataclass(frozen=True)
class UpcycledOptimum:
    """Section F.3. D2_opt = G (C2 / 6 r)^a and N1_opt = G^-1 (C2 / 6 r)^b, r = N2 / N1, at one D1.

    All numbers but the effective ones are NaN where `exists` is False.
    """

    alpha_eff: float
    """Exponent of D2 at this D1, alpha2 - alpha3 ln D1."""
    A_eff: float
    """Factor of D2^-alpha_eff at this D1, A D1^-alpha1, in nats."""
    G: float
    a: float
    """D2_opt grows as FLOPs to this power."""
    b: float
    """N1_opt grows as FLOPs to this power."""
    exponent: float
    """D2_opt grows as N1_opt to this power, beta / alpha_eff."""
    active_ratio: float = 1.75

    @property
    def exists(self) -> bool:
        """Whether more tokens and larger models both lower the loss; else there is no optimum within."""
        return bool(np.isfinite(self.G))

    def d2(self, flops: float) -> float:
        """Tokens of the upcycled stage at a budget for it alone.

        Raises `UserError` where there is no optimum.
        """
        return float(self._checked().G * (as_positive("flops", flops) / (6 * self.active_ratio)) ** self.a)

    def n1(self, flops: float) -> float:
        """Size of the dense model at that budget; the parameters that a token uses are `active_ratio` times it.

        Raises `UserError` where there is no optimum.
        """
        return float((as_positive("flops", flops) / (6 * self.active_ratio)) ** self.b / self._checked().G)

    def d2_of_n1(self, n1: float) -> float:
        """Tokens of the upcycled stage at the budget for which this size is the best.

        Raises `UserError` where there is no optimum.
        """
        return float(self._checked().G * (self.G * as_positive("n1", n1)) ** self.exponent)

    def _checked(self) -> UpcycledOptimum:
        if not self.exists:
            raise UserError(
                f"no compute-optimal upcycling at this D1, where the exponent of D2 is {self.alpha_eff:.4g}: it and "
                "that of N1 must be above 0 (it falls with D1; beyond `exhausting_D1` more tokens gain nothing)"
            )
        return self


def equation_14(values: Mapping[str, float], d1: float, active_ratio: float = 1.75) -> UpcycledOptimum:
    """Equation 14. Compute-optimal upcycling of dense models of d1 tokens, from Equation 12's parameters.

    alpha3 may be absent (0). Raises `UserError` for a d1 that is not above 0.
    """
    d1 = as_positive("d1", d1)
    columns = {name: np.array([value]) for name, value in values.items()}
    alpha_eff, scale, g, a, b, exponent = (float(column[0]) for column in _closed_form(columns, d1))
    return UpcycledOptimum(alpha_eff, scale, g, a, b, exponent, active_ratio)


def _closed_form(values: Mapping[str, Array], d1: float) -> tuple[Array, Array, Array, Array, Array, Array]:
    """alpha_eff, A_eff, G, a, b, exponent of many parameter vectors [B]; NaN from G on where there is no optimum."""
    alpha = values["alpha2"] - values.get("alpha3", np.zeros(1)) * np.log(d1)
    scale, beta = values["A"] * d1 ** -values["alpha1"], values["beta"]
    exists = (alpha > 0) & (beta > 0)
    with np.errstate(all="ignore"):
        g = np.where(exists, (scale * alpha / (values["B"] * beta)) ** (1 / (alpha + beta)), np.nan)
        shares = (np.where(exists, part / (alpha + beta), np.nan) for part in (beta, alpha))
        return alpha, scale, g, *shares, np.where(exists, beta / alpha, np.nan)


def optimal_scratch(
    values: Mapping[str, float], flops: float, flops_per_parameter_token: float = 6.0
) -> OptimalAllocation:
    """The size N1 and tokens D of least loss under Equation 3 with k N1 D = flops, in closed form.

    k is 6 for a dense model and 6 active_ratio for a mixture. Raises `UserError` where an exponent is not above 0, so
    that there is no optimum, and for parameters of another law.
    """
    missing = {"A", "alpha", "B", "beta", "E"} - set(values)
    if missing:
        raise UserError(
            f"the optimum from scratch takes Equation 3's parameters; missing: {', '.join(sorted(missing))}"
        )
    A, alpha, B, beta = (values[name] for name in ("A", "alpha", "B", "beta"))
    if not (alpha > 0 and beta > 0 and A > 0 and B > 0):
        raise UserError(
            f"no compute-optimal model: A D^-alpha + B N^-beta with A = {A:.4g}, alpha = {alpha:.4g}, B = {B:.4g}, "
            f"beta = {beta:.4g} does not fall in both"
        )
    product = as_positive("flops", flops) / flops_per_parameter_token
    g = (A * alpha / (B * beta)) ** (1 / (alpha + beta))
    d, n1 = g * product ** (beta / (alpha + beta)), product ** (alpha / (alpha + beta)) / g
    return OptimalAllocation(float(n1), float(d), float(A * d**-alpha + B * n1**-beta + values["E"]))


def optimal_upcycled(three: ThreeLaws, d1: float, flops: float) -> OptimalAllocation:
    """The size N1 and tokens D2 of least loss with 6 N2 D2 = flops, dense models of d1 tokens being given: any law.

    Numerical; equals Equation 14 for Equation 12. Raises `UserError` for a law without model sizes.
    """
    curve, d1, flops = _with_sizes(three), as_positive("d1", d1), as_positive("flops", flops)
    product = flops / (6 * three.active_ratio)
    tokens, value, bound = _best_tokens(lambda D2: curve.loss(D1=d1, D2=D2, N1=product / D2), "D2")
    return OptimalAllocation(product / tokens["D2"], tokens["D2"], value, bound)


def optimal_two_stage(three: ThreeLaws, flops: float) -> TwoStage:
    """Section 5.2: D1, D2, N1 of least loss with 6 N1 D1 + 6 N2 D2 = flops, nothing being given: any law, numerical.

    Raises `UserError` for a law without model sizes.
    """
    curve, flops, ratio = _with_sizes(three), as_positive("flops", flops), three.active_ratio

    def size(d1: Any, d2: Any) -> Any:
        return flops / 6 / (d1 + ratio * d2)

    tokens, value, bound = _best_tokens(lambda D1, D2: curve.loss(D1=D1, D2=D2, N1=size(D1, D2)), "D1", "D2")
    d1, d2 = tokens["D1"], tokens["D2"]
    return TwoStage(size(d1, d2), d1, d2, value, bound)


def _best_tokens(loss: Callable[..., Array], *names: str) -> tuple[dict[str, float], float, tuple[str, ...]]:
    """Tokens of least loss, by name, within D_LOW..D_HIGH; that loss; and the names that ended at a bound."""
    low_A, high_A = np.log(np.full(len(names), D_LOW)), np.log(np.full(len(names), D_HIGH))
    log_A, value, at_A = minimise_in_box(lambda log_AM: loss(*np.exp(log_AM)), low_A, high_A)
    tokens = dict(zip(names, np.exp(log_A).tolist(), strict=True))
    return tokens, value, tuple(name for name, there in zip(names, at_A, strict=True) if there)


def three_way(three: ThreeLaws, flops: Array) -> pd.DataFrame:
    """Figure 16's comparison: a row a budget, with the best dense model, MoE from scratch and two-stage training.

    Columns: `flops`; for each of `dense`, `moe`, `two_stage` its `_loss`, `_n1`, tokens (`_d`; `_d1`, `_d2`) and
    `_outside` (largest distance to the data in natural logarithms); with draws also `_low` and `_high`, the 95 % band
    of the loss of that very plan, and `two_stage_ahead`, the share of draws in which it beats both; `best`;
    `two_stage_at_bound`. Raises `UserError` where a law is missing or has no optimum.
    """
    rows = []
    dense, moe = three.need("dense"), three.need("moe")
    for budget in np.atleast_1d(np.asarray(flops, dtype=np.float64)).tolist():
        of_dense = optimal_scratch(dense.values, budget, 6.0)
        of_moe = optimal_scratch(moe.values, budget, 6.0 * three.active_ratio)
        both = optimal_two_stage(three, budget)
        plans: dict[str, tuple[Curve, dict[str, float], float]] = {
            "dense": (dense, {"D": of_dense.d, "N1": of_dense.n1}, of_dense.loss),
            "moe": (moe, {"D": of_moe.d, "N1": of_moe.n1}, of_moe.loss),
            "two_stage": (three.upcycled, {"D1": both.d1, "D2": both.d2, "N1": both.n1}, both.loss),
        }
        row: dict[str, object] = {"flops": budget}
        for name, (curve, inputs, loss) in plans.items():
            row[f"{name}_loss"] = loss
            row |= {f"{name}_{key.lower()}": value for key, value in inputs.items()}
            row[f"{name}_outside"] = max(curve.outside(**inputs).values(), default=np.nan)
        row["best"] = min(plans, key=lambda name: plans[name][2])
        row["two_stage_at_bound"] = " ".join(both.at_bound)
        rows.append(row | (_loss_bands(plans) if three.n_draws else {}))
    return pd.DataFrame(rows)


def _loss_bands(plans: Mapping[str, tuple[Curve, dict[str, float], float]]) -> dict[str, float]:
    draws = {name: curve.loss_draws(**inputs) for name, (curve, inputs, _) in plans.items()}
    bands = {}
    for name, losses_B in draws.items():
        bands[f"{name}_low"], bands[f"{name}_high"] = central_95(losses_B)
    ahead = draws["two_stage"] < np.minimum(draws["dense"], draws["moe"])
    return {**bands, "two_stage_ahead": float(ahead.mean())}


@dataclass(frozen=True)
class UpcycledBands:
    """Compute-optimal upcycling at one D1 and dense size: central estimates and central 95 % of the draws."""

    d2: float
    """D2_opt in tokens at the budget for which this size is the best; NaN: no optimum within D_LOW..D_HIGH."""
    exponent: float
    """d ln D2_opt / d ln N1_opt there."""
    d2_band: tuple[float, float] | None
    """Among the draws that have an optimum; None without draws."""
    exponent_band: tuple[float, float] | None
    share_without: float
    """Share of the draws without an optimum; NaN without draws."""


def upcycled_bands(three: ThreeLaws, d1: float, n1: float) -> UpcycledBands:
    """D2_opt at a dense model's size and tokens, and its exponent, with bands through the draws.

    By Equation 14 where it holds; for other laws the D2 at which N1 and D2 gain alike. Raises `UserError` for a law
    without model sizes.
    """
    curve, d1, n1 = _with_sizes(three), as_positive("d1", d1), as_positive("n1", n1)
    if curve.law.name in CLOSED_FORM:
        names = [name for name in curve.law.names if name != "E"]
        drawn = curve.draws or {name: np.empty(0) for name in names}
        columns = {name: np.array([curve.values[name], *drawn[name]]) for name in names}
        _, _, g, _, _, exponent = _closed_form(columns, d1)
        d2 = g * (g * n1) ** exponent
    else:
        step = 0.01
        d2, below, above = (_stationary_d2(curve, d1, n1 * np.exp(shift)) for shift in (0.0, -step, step))
        exponent = np.log(above / below) / (2 * step)
    has = np.isfinite(d2[1:]) & np.isfinite(exponent[1:])
    bands = [central_95(column[1:][has]) if has.sum() > 1 else None for column in (d2, exponent)]
    return UpcycledBands(
        float(d2[0]), float(exponent[0]), bands[0], bands[1], float(1 - has.mean()) if len(has) else float("nan")
    )


def _stationary_d2(curve: Curve, d1: float, n1: float) -> Array:
    """D2 [1 + B] of each row at which its loss is least along N1 D2 = constant through n1; NaN where nowhere."""
    step = 1e-4

    def change(loss: Callable[..., Array], log_d2: Array) -> Array:
        more, less = (loss(D1=d1, D2=np.exp(log_d2 + e), N1=n1 * np.exp(-e)) for e in (step, -step))
        return more - less

    def on_grid(log_G: Array) -> Array:
        return change(curve.loss_rows, log_G)

    def at_rows(rows_R: NDArray[np.intp], log_R: Array) -> Array:
        return change(lambda **inputs: curve.loss_at(rows_R, **inputs), log_R)

    found = all_roots(on_grid, at_rows, np.log(D_LOW), np.log(D_HIGH))
    rising = on_grid(np.array([np.log(D_LOW)]))[:, 0] >= 0
    # Stationary points alternate; a least loss is where the change turns from falling to rising.
    least = [roots[int(up) :: 2] for roots, up in zip(found, rising, strict=True)]
    return np.array([np.exp(roots[0]) if roots else np.nan for roots in least])


def _with_sizes(three: ThreeLaws) -> Curve:
    if not three.upcycled.depends_on_size:
        raise UserError(
            f"law `{three.upcycled.law.name}` knows no model size, so FLOPs cannot be shared between size and tokens: "
            "fit `joint` to upcycled models of several sizes"
        )
    return three.upcycled


def minimise_in_box(
    loss: Callable[[Array], Array], low_A: Array, high_A: Array
) -> tuple[Array, float, NDArray[np.bool_]]:
    """The least value of a smooth function of one or two variables in a box, on ever finer grids.

    `loss` takes points [A, M] and gives [M]. Returns the point [A], the value, and which variables ended at a bound.
    The first grid covers the box, so the least of several minima is found; the point is known to about the square root
    of the rounding of the loss, some 1e-7.
    """
    center_A, reach_A = (low_A + high_A) / 2, (high_A - low_A) / 2
    points = 161
    best = np.inf
    while True:
        axes = [
            np.linspace(max(low, c - r), min(high, c + r), points)
            for low, high, c, r in zip(low_A, high_A, center_A, reach_A, strict=True)
        ]
        grid_AM = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")])
        value_M = loss(grid_AM)
        at = int(np.argmin(value_M))
        if value_M[at] <= best:
            best, center_A = float(value_M[at]), grid_AM[:, at]
        step_A = np.array([axis[1] - axis[0] for axis in axes])
        if (step_A < 1e-9).all():
            margin_A = 1e-6
            return center_A, best, (center_A - low_A < margin_A) | (high_A - center_A < margin_A)
        # At the edge of the window, but not of the box, the least may lie outside: move before looking closer. Steps
        # below 1e-5 no longer tell differences of the loss from its rounding.
        edge = np.array([c in (axis[0], axis[-1]) for c, axis in zip(center_A, axes, strict=True)]) & (step_A > 1e-5)
        inside = (center_A > low_A) & (center_A < high_A)
        reach_A = np.where(edge & inside, reach_A, np.minimum(reach_A, 3 * step_A))
        points = 25
