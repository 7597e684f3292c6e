"""The three laws that a decision rests on, as loss curves with their draws: dense, MoE from scratch, upcycled.

D, D1 and D2 are in tokens, N1 is the dense model's size in non-embedding parameters, losses are in nats. The MoE's law
too is one of N1, as in Table 2. Shape suffixes: B draws, P parameters, R pairs of a draw and a point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from upcycle.decisions.published import D_RANGE, N1_RANGE, NOTES, TABLE_2, TABLE_2_E, half_unit
from upcycle.errors import UserError
from upcycle.laws.forms import get_law
from upcycle.laws.law import Box, Law
from upcycle.laws.result import FitResult, read_fit
from upcycle.laws.terms import Array
from upcycle.study.spec import EXPAND

Rows = NDArray[np.intp]
"""Numbers of rows: 0 is the central estimate, 1 + b is draw b."""


@dataclass(frozen=True)
class Curve:
    """One fitted law as a loss curve, with its draws."""

    law: Law
    values: Mapping[str, float]
    """Parameters by name, fixed ones too."""
    draws: Mapping[str, Array] | None
    """Every parameter, fixed ones too, [B]; None: no uncertainty is known."""
    box: Box
    """The data's range in each of D (or D1, D2) and N1 (for a law without N1: the one size fitted)."""
    ids: tuple[str, ...] = ()
    """Runs that it was fitted to; empty for printed parameters."""

    def __post_init__(self) -> None:
        """Raise `UserError` for a parameter without a value or without draws."""
        for what, given in (("values", self.values), ("draws", self.draws)):
            missing = set(self.law.names) - set(given) if given is not None else set()
            if missing:
                raise UserError(f"law `{self.law.name}`: the {what} lack {', '.join(sorted(missing))}")

    @property
    def n_draws(self) -> int:
        """How many draws there are; 0 without."""
        return len(next(iter(self.draws.values()))) if self.draws else 0

    @property
    def depends_on_size(self) -> bool:
        """Whether the law has the model's size among its inputs; without, `loss` ignores N1."""
        return bool({"N", "N1"} & set(self.law.inputs))

    def loss(self, **inputs: ArrayLike) -> Array:
        """Loss in nats at D, N1 (dense, MoE) or D1, D2, N1 (upcycled), in the shape that the inputs broadcast to.

        Raises `UserError` for an input that is missing or that the law cannot take.
        """
        columns, shape = self._columns(inputs)
        return self.law.predict(self.values, columns).reshape(shape)

    def loss_draws(self, **inputs: ArrayLike) -> Array:
        """Loss of every draw, [B, ...], as `loss`.

        Raises `UserError` where there are no draws.
        """
        if not self.n_draws:
            raise UserError(f"law `{self.law.name}` was fitted without draws, so no band is known: fit with draws > 0")
        return self.loss_rows(**inputs)[1:]

    def loss_rows(self, **inputs: ArrayLike) -> Array:
        """Loss of the central estimate and of every draw, [1 + B, ...], as `loss`."""
        columns, shape = self._columns(inputs)
        with np.errstate(over="ignore"):
            return np.exp(self.law.model(columns).value(self._theta)).reshape(-1, *shape)

    def loss_at(self, rows_R: Rows, **inputs_R: ArrayLike) -> Array:
        """Loss [R] of each of these rows at its own inputs [R]: what solving for each draw needs."""
        columns, _ = self._columns({**inputs_R, "rows": rows_R})
        design, theta_RP = self.law.design(columns), self._theta[rows_R]
        exponent_MR = np.einsum("mrp,rp->mr", design.x_MNP, theta_RP)
        if design.shifted_MNP is not None and design.z_N is not None and self.law.offset is not None:
            place = self.law.names.index(self.law.offset.name)
            log_R = np.log1p(design.z_N * np.exp(-theta_RP[:, place]))
            exponent_MR += log_R * np.einsum("mrp,rp->mr", design.shifted_MNP, theta_RP)
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(exponent_MR).sum(axis=0) + (design.floor_NP * theta_RP).sum(axis=1))

    def outside(self, **inputs: ArrayLike) -> dict[str, float]:
        """Distance of each input to the data's range in natural logarithms, largest over the points; 0 inside."""
        distances = {}
        for name, (low, high) in self.box.items():
            if name in inputs:
                with np.errstate(divide="ignore"):
                    log = np.log(np.asarray(inputs[name], dtype=np.float64))
                distances[name] = float(np.maximum(0.0, np.maximum(np.log(low) - log, log - np.log(high))).max())
        return distances

    def without_draws(self) -> Curve:
        """The central estimate alone."""
        return replace(self, draws=None)

    def first_draws(self, count: int) -> Curve:
        """The same with the first `count` draws; with none where that is 0."""
        kept = {name: column[:count] for name, column in (self.draws or {}).items()} if count else None
        return replace(self, draws=kept or None)

    @cached_property
    def _theta(self) -> Array:
        """Internal parameters [1 + B, P], the central estimate first."""
        columns = []
        for p in self.law.parameters:
            column = np.array([self.values[p.name], *(self.draws[p.name] if self.draws else ())], dtype=np.float64)
            if p.positive:
                with np.errstate(divide="ignore"):
                    column = np.maximum(np.log(column), -1e4)  # as Law.internal: a scale of 0
            columns.append(column)
        return np.stack(columns, axis=1)

    def _columns(self, inputs: Mapping[str, ArrayLike]) -> tuple[dict[str, Array], tuple[int, ...]]:
        """The law's own inputs, flat, and the shape of the answer."""
        arrays = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in inputs.values()))
        columns = {name: array.ravel() for name, array in zip(inputs, arrays, strict=True)}
        if "N" in self.law.inputs and "N1" in columns:
            columns["N"] = columns["N1"]
        return columns, arrays[0].shape


Lineage = Literal["dense", "moe", "upcycled"]


@dataclass(frozen=True)
class ThreeLaws:
    """The laws of dense models, of MoEs from scratch and of upcycled MoEs of one mixture."""

    dense: Curve | None
    """None: the fits have none; `need` then names the fit to add."""
    moe: Curve | None
    upcycled: Curve
    n_expert: int
    top_k: int
    source: str
    rounded: bool
    """Whether the parameters are rounded as printed."""
    paired: bool
    """Whether draw b of each law belongs to draw b of the others; if not, they are paired at random."""
    notes: tuple[str, ...] = ()
    """Caveats in words."""
    fits: tuple[str, ...] = ()
    """Names of the fits that these laws are of."""

    def __post_init__(self) -> None:
        """Raise `UserError` when the laws' draws are not equally many."""
        counts = {curve.n_draws for curve in self.curves}
        if len(counts) > 1:
            raise UserError(f"the laws have {sorted(counts)} draws: bands take as many of each")

    @property
    def curves(self) -> tuple[Curve, ...]:
        """The laws that are known."""
        return tuple(curve for curve in (self.dense, self.moe, self.upcycled) if curve is not None)

    @property
    def active_ratio(self) -> float:
        """N2 / N1 (Equations 4 and 5)."""
        return (4 + 12 * self.top_k) / 16

    @property
    def n_draws(self) -> int:
        """Draws of each law."""
        return self.upcycled.n_draws

    @property
    def data_tokens(self) -> tuple[float, float] | None:
        """Fewest and most tokens (D, D1, D2) over all rows that the laws were fitted to; None: not known."""
        boxes = [box for curve in self.curves for name, box in curve.box.items() if name != "N1"]
        return (min(low for low, _ in boxes), max(high for _, high in boxes)) if boxes else None

    @property
    def tokens(self) -> tuple[float, float] | None:
        """`data_tokens` where roots far outside do not count; None for rounded parameters, all of whose roots count."""
        return None if self.rounded else self.data_tokens

    def need(self, lineage: Lineage) -> Curve:
        """One of the laws.

        Raises `UserError` saying which fit to add.
        """
        curve: Curve | None = getattr(self, lineage)
        if curve is None:
            what = {"dense": "dense models", "moe": "MoEs trained from scratch"}[lineage]
            raise UserError(
                f"{self.source} has no law of {what}: add a fit of law `chinchilla` to the dense and MoE losses "
                "with `by: lineage` and `shared: [E]`"
            )
        return curve

    def without_draws(self) -> ThreeLaws:
        """The central estimates alone, for what needs no band."""
        dense, moe = (curve.without_draws() if curve is not None else None for curve in (self.dense, self.moe))
        return replace(self, dense=dense, moe=moe, upcycled=self.upcycled.without_draws())


def central_95(values: ArrayLike) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles."""
    low, high = np.quantile(np.asarray(values, dtype=np.float64), [0.025, 0.975])
    return float(low), float(high)


def as_positive(name: str, value: Any) -> float:
    """A finite number above 0.

    Raises `UserError` naming the quantity.
    """
    number = float(value)
    if not (np.isfinite(number) and number > 0):
        raise UserError(f"{name} = {value} must be a finite number above 0")
    return number


def published(draws: int = 2000, seed: int = 0) -> ThreeLaws:
    """Equations 3 and 12 with the parameters of Table 2, for 8 experts, top-2.

    The draws are uniform in the boxes that round to the printed digits, one E for all three laws.
    """
    generator = np.random.default_rng(seed)

    def drawn(printed: str) -> Array:
        value, half = float(printed), half_unit(printed)
        return generator.uniform(value - half, value + half, draws)

    floors = drawn(TABLE_2_E)
    curves = {}
    for lineage, printed in TABLE_2.items():
        law = get_law("joint" if lineage == "upcycled" else "chinchilla")
        tokens = ("D1", "D2") if lineage == "upcycled" else ("D",)
        curves[lineage] = Curve(
            law,
            {name: float(digits) for name, digits in printed.items()} | {"E": float(TABLE_2_E)},
            {name: drawn(digits) for name, digits in printed.items()} | {"E": floors} if draws else None,
            {**dict.fromkeys(tokens, D_RANGE), "N1": N1_RANGE},
        )
    return ThreeLaws(
        curves["dense"],
        curves["moe"],
        curves["upcycled"],
        n_expert=8,
        top_k=2,
        source="the paper's Table 2 (rounded as printed)",
        rounded=True,
        paired=True,
        notes=NOTES,
    )


def read_fits(folder: Path) -> dict[str, FitResult]:
    """The fits of a folder (*.json) by name, as `upcycle fit` writes them.

    Raises `UserError` for a folder without fits or with a damaged one.
    """
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise UserError(f"{folder} holds no fits (*.json): name a study's folder of fits, such as results/fits")
    return {path.stem: read_fit(path) for path in paths}


def read_three_laws(folder: Path) -> ThreeLaws:
    """The three laws of a folder of fits.

    Raises `UserError` as `read_fits` and `from_fits`.
    """
    return from_fits(read_fits(folder), f"fits in {folder}")


PLURALS = {"dense": "dense models", "moe": "MoEs from scratch", "upcycled": "upcycled models"}
"""What each of the three laws is of, in words."""


def from_fits(fits: Mapping[str, FitResult], source: str) -> ThreeLaws:
    """The three laws among fits by name.

    Dense and MoE: one fit `by: lineage` of Equation 3 (or of tokens alone), else one fit of each; upcycled: a law of
    several sizes if there is one; of the mixture that was trained from scratch, if one is; of those the fits to most
    losses; of these the law of smallest leave-one-out error. Only laws marked for it (`Law.decides`) are used. Raises
    `UserError` when none is of upcycled losses.
    """
    name, up = _upcycled(fits, source)
    scratch, dense, moe = _scratch(fits, up)
    found = {"dense": dense, "moe": moe, "upcycled": up}
    curves = {lineage: curve_of(fit) for lineage, fit in found.items() if fit is not None}
    counts = {lineage: curve.n_draws for lineage, curve in curves.items()}
    fewest = min(counts.values())
    notes = [
        f"The law of {PLURALS[lineage]} is {fit.statement}."
        for lineage, fit in found.items()
        if fit and not fit.identifiable
    ]
    if any(fit.simulated for fit in found.values() if fit):
        notes.append("Fitted to simulated losses.")
    if fewest == 0 < max(counts.values()):
        without = ", ".join(lineage for lineage, count in counts.items() if count == 0)
        notes.append(f"No bands: the fit of {without} has no draws.")
    # Draws belong together where the E of each upcycled draw came from that draw of the laws from scratch.
    handed_on = up.floor is not None and [fits[each].data_sha256 for each in scratch] == [up.floor["data_sha256"]]
    paired = (handed_on or (dense is None and moe is None)) and len(set(counts.values())) == 1
    if fewest and not paired:
        notes.append("Draws of the three laws come from separate bootstraps and are paired at random.")
    mixture = next(((f.n_expert, f.top_k) for f in (up, moe) if f and f.n_expert and f.top_k), None)
    if mixture is None:
        notes.append("The fits do not tell the mixture: taken as 8 experts, top-2.")
    n_expert, top_k = mixture or (8, 2)
    used = " and ".join(f"fit `{each}`" for each in scratch)
    kept = {lineage: curve.first_draws(fewest) for lineage, curve in curves.items()}
    return ThreeLaws(
        kept.get("dense"),
        kept.get("moe"),
        kept["upcycled"],
        n_expert=n_expert,
        top_k=top_k,
        source=source,
        rounded=False,
        paired=paired,
        notes=(*notes, f"Laws used: upcycled of fit `{name}`, from scratch of {used or 'none'}."),
        fits=(name, *scratch),
    )


def _upcycled(fits: Mapping[str, FitResult], source: str) -> tuple[str, FitResult]:
    found = [
        (name, fit)
        for name, fit in fits.items()
        if get_law(fit.law).decides == "upcycled"
        and fit.by is None
        and fit.lineage in (None, "up")
        and fit.method != EXPAND  # whose D1 is of a mixture: decisions are about dense models
    ]
    if not found:
        raise UserError(
            f"{source}: none of {', '.join(f'`{name}`' for name in fits)} is a law of upcycled losses; "
            "fit `joint` (several sizes) or `multiplicative` (one size) to them"
        )

    mixtures = moe_mixtures(fits)

    def rank(item: tuple[str, FitResult]) -> tuple[bool, bool, int, bool, float]:
        fit = item[1]
        one_size = "N1" not in get_law(fit.law).inputs
        other = bool(mixtures) and mixture_of(fit) not in mixtures
        return one_size, other, -fit.n, not fit.identifiable, np.inf if fit.loo_rms is None else fit.loo_rms

    return min(found, key=rank)


Mixture = tuple[int, int]
"""Experts and active experts."""


def mixture_of(fit: FitResult) -> Mixture | None:
    """The one mixture that all losses of a fit are of; None: not known, or of several."""
    return (fit.n_expert, fit.top_k) if fit.n_expert and fit.top_k else None


def moe_mixtures(fits: Mapping[str, FitResult]) -> set[Mixture]:
    """Mixtures that these fits have a law from scratch of, as far as they tell."""
    scratch = [fit for fit in fits.values() if get_law(fit.law).decides == "scratch"]
    parts = [part for fit in scratch for part in (fit.group_fits.values() if fit.by == "lineage" else [fit])]
    return {mixture for part in parts if part.lineage == "moe" and (mixture := mixture_of(part))}


def _scratch(fits: Mapping[str, FitResult], up: FitResult) -> tuple[list[str], FitResult | None, FitResult | None]:
    """Names of the fits that hold the laws from scratch, and the laws of dense models and of MoEs."""
    scratch = {name: fit for name, fit in fits.items() if get_law(fit.law).decides == "scratch"}
    grouped = {name: fit for name, fit in scratch.items() if fit.by == "lineage"}
    if grouped:
        floor_data = up.floor and up.floor.get("data_sha256")

        def rank(name: str) -> tuple[bool, bool]:
            return grouped[name].data_sha256 != floor_data, ("N" in grouped[name].box) != (
                "N1" in get_law(up.law).inputs
            )

        name = min(grouped, key=rank)
        groups = grouped[name].group_fits
        return [name], groups.get("dense"), groups.get("moe")
    first = [
        min((name for name, fit in scratch.items() if fit.lineage == lineage), default=None)
        for lineage in ("dense", "moe")
    ]
    dense, moe = (None if name is None else scratch[name] for name in first)
    return [name for name in first if name is not None], dense, moe


def curve_of(fit: FitResult) -> Curve:
    """A fit as a curve. A fixed parameter's draws are those of the fit it came from, else its value."""
    draws: dict[str, Array] | None = None
    if fit.draws:
        draws = {name: np.asarray(column, dtype=np.float64) for name, column in fit.draws.items()}
        count = len(next(iter(draws.values())))
        first_step = (fit.floor or {}).get("draws") or {}
        for name, value in fit.fixed.items():
            known = np.asarray(first_step.get(name, ()), dtype=np.float64)
            if name not in draws:
                draws[name] = known if len(known) == count else np.full(count, value)
    box = {("N1" if name == "N" else name): (float(low), float(high)) for name, (low, high) in fit.box.items()}
    return Curve(get_law(fit.law), fit.values, draws, box, tuple(fit.ids))
