"""Audit of the paper's own losses of section 4.2, where a table of them is given (`upcycle audit --losses FILE`).

The table is in the form of losses.csv: upcycled mixtures at one D1, several dense sizes and several D2. Every fit is
made with and without the rows of top-1, whose losses rise with the number of experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from upcycle.audit.printed import CONFIGURATION_RMS, EQUATION_11
from upcycle.audit.verdict import AuditItem, Evidence, Texts, plain_number
from upcycle.errors import UserError
from upcycle.laws.fit import fit
from upcycle.laws.forms import get_law
from upcycle.laws.result import FitResult
from upcycle.laws.tables.losses import law_columns, read_losses
from upcycle.study.spec import short_count

_TEXTS = Texts.of("sparsity")
_FORMS = {
    "multiplicative, interaction": "configuration_multiplicative",
    "multiplicative": "configuration_multiplicative_no_interaction",
    "additive, interaction": "configuration_additive",
    "additive": "configuration_additive_no_interaction",
}
"""The laws of `CONFIGURATION_RMS`, in its order (D.1)."""
_DRAWS = 100
_LARGEST = "0.2B"


@dataclass(frozen=True)
class BudgetLosses:
    """The losses at one D2, with or without those of top-1."""

    name: str
    rows: pd.DataFrame
    grid: int
    """Points of the paper's grid: all sizes and mixtures (without top-1, those of more)."""

    def fitted(
        self, law: str, rows: pd.DataFrame | None = None, draws: int = _DRAWS, fixed: Mapping[str, float] | None = None
    ) -> FitResult:
        """A law fitted to these rows, or to some of them."""
        rows = self.rows if rows is None else rows
        return fit(get_law(law), law_columns(rows, ["P", "N2", "loss"]), draws=draws, fixed=fixed)

    @cached_property
    def fits(self) -> dict[str, FitResult]:
        """The four forms of D.1. The last is Equation 11, up to a 1 beside N2."""
        return {name: self.fitted(law) for name, law in _FORMS.items()}


def read_sparsity(path: Path) -> pd.DataFrame:
    """The rows of upcycled mixtures in a table of losses in the form of losses.csv.

    Raises `UserError` for rows that are not the study of section 4.2: one D1, top-1 and others, three sizes or more.
    """
    rows = read_losses(path)
    rows = rows[rows["lineage"] == "up"]
    if rows["D1"].nunique() != 1 or rows["N1"].nunique() < 3 or not {1, 2} <= set(rows["top_k"]):
        raise UserError(
            f"{path}: no sparsity study: upcycled mixtures at one D1, of three sizes or more, top-1 and top-2; "
            "`upcycle import-losses` makes such a table of the paper's (docs/your-own-losses.md)"
        )
    return rows


def sparsity_items(evidence: Evidence, losses: pd.DataFrame) -> Iterator[AuditItem]:
    """All items of this topic, from rows of `read_sparsity`."""
    sweep = evidence.study.sweeps["configuration"]
    mixtures = [evidence.study.moes[name] for name in sweep.moe]
    yield from _top_k(losses)
    if losses["D2"].nunique() > 1:
        yield _exponents_of_d2(losses)
    for name, rows in _by_budget(losses):
        for label, chosen, used in (
            ("all", rows, mixtures),
            ("without top-1", rows[rows["top_k"] > 1], [each for each in mixtures if each.top_k > 1]),
        ):
            yield from _budget(BudgetLosses(f"D2 = {name}, {label}", chosen, len(sweep.model) * len(used)))


def _by_budget(losses: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The losses by D2, that of the paper's fits (D2 = D1) first."""
    budgets = sorted(losses["D2"].unique(), key=lambda d2: (d2 != losses["D1"].iloc[0], d2))
    return ((short_count(d2), losses[losses["D2"] == d2]) for d2 in budgets)


def _top_k(losses: pd.DataFrame) -> Iterator[AuditItem]:
    """How often a loss rises with the number of experts, everything else equal."""
    for top_k, rows in losses.groupby("top_k"):
        first = rows["n_expert"].min()
        table = rows.pivot_table(index=["N1", "D2"], columns="n_expert", values="loss")
        steps = [table[more] - table[first] for more in table.columns if more != first]
        steps = pd.concat(steps).dropna()
        values = {"rises": float((steps > 0).sum()), "of": float(len(steps)), "mean change in nats": steps.mean()}
        yield _TEXTS.follows("rises", values, top_k=top_k, first=first)
    later = losses.pivot_table(index=["N1", "n_expert", "top_k"], columns="D2", values="loss")
    gaps = [later[more] - later[less] for less, more in combinations(sorted(later.columns), 2)]
    if gaps:
        yield _TEXTS.follows("later", {"rises": float((pd.concat(gaps).dropna() > 0).sum())})


def _exponents_of_d2(losses: pd.DataFrame) -> AuditItem:
    """-d ln L / d ln D2 of each mixture: one slope for all sizes, each with its own level."""
    slopes = {}
    for moe, rows in losses.groupby("moe"):
        x, y = np.log(rows["D2"]), np.log(rows["loss"])
        x, y = (each - each.groupby(rows["N1"]).transform("mean") for each in (x, y))
        slopes[str(moe)] = float(-(x * y).sum() / (x * x).sum())
    order = sorted(slopes, key=lambda name: [int(part) for part in reversed(name.split("x"))])
    return _TEXTS.follows("exponents", {name: slopes[name] for name in order})


def _budget(budget: BudgetLosses) -> Iterator[AuditItem]:
    """Equation 11, the four forms, the interaction and the extrapolation at one D2."""
    words = {"budget": budget.name, "points": len(budget.rows), "grid": budget.grid}
    ours = budget.fits["additive"]
    found = {name: ours.values[name] for name in (*EQUATION_11, "E")}
    printed_exponents = {name: float(text) for name, text in EQUATION_11.items()}
    held = budget.fitted(_FORMS["additive"], draws=0, fixed=printed_exponents)
    found |= {"RMS": ours.rms, "RMS with the printed exponents": held.rms}
    spans = [f"{name} {_span(ours, name)}" for name in EQUATION_11]
    state = "identifiable" if ours.identifiable else "not identifiable"
    printed = " ".join(f"{name} {text}" for name, text in EQUATION_11.items())
    yield _TEXTS.partly(
        "equation_11", found, len(EQUATION_11), cells=printed, spans="; ".join(spans), state=state, **words
    )
    errors = {name: float(each.loo_rms) for name, each in budget.fits.items() if each.loo_rms is not None}
    lowest, second = sorted(errors, key=lambda name: errors[name])[:2]
    margin = errors[second] / errors[lowest] - 1
    cells = " ".join(CONFIGURATION_RMS.values())
    yield _TEXTS.partly("rms", errors, len(errors), cells=cells, lowest=lowest, margin=f"{margin:.1%}", **words)
    interactions = {name: each for name, each in budget.fits.items() if "beta3" in each.values}
    spans = [f"{name.split(',')[0]} {_span(each, 'beta3')}" for name, each in interactions.items()]
    values = {name.split(",")[0]: each.values["beta3"] for name, each in interactions.items()}
    away = [name for name, each in interactions.items() if _excludes_zero(each)]
    yield _TEXTS.partly(
        "interaction", values, 1, spans="; ".join(spans), zero="no interval" if not away else ", ".join(away), **words
    )
    yield _extrapolation(budget, words)


def _extrapolation(budget: BudgetLosses, words: dict[str, object]) -> AuditItem:
    """Equation 11 fitted to the smaller sizes, against the losses of the largest."""
    largest = budget.rows["N1"] == budget.rows["N1"].max()
    smaller, held_out = budget.rows[~largest], budget.rows[largest]
    fitted = budget.fitted(_FORMS["additive"], smaller, draws=0)
    predicted = get_law(fitted.law).predict(fitted.values, law_columns(held_out, ["P", "N2"]))
    gaps = predicted - held_out["loss"].to_numpy()
    mean = smaller["loss"][smaller["N1"] == smaller["N1"].max()].mean()
    values = {"RMS": _rms(gaps), "mean error": float(gaps.mean())}
    values["RMS of the next smaller size's mean loss"] = _rms(mean - held_out["loss"].to_numpy())
    return _TEXTS.follows("extrapolation", values, size=_LARGEST, fitted=len(smaller), held=len(held_out), **words)


def _rms(gaps: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(gaps))))


def _span(fitted: FitResult, name: str) -> str:
    """A parameter's 95 % interval in words."""
    ends = fitted.intervals.get(name, [None, None])
    return "{} to {}".format(*("?" if end is None else plain_number(float(end), 2) for end in ends))


def _excludes_zero(fitted: FitResult) -> bool:
    low, high = fitted.intervals.get("beta3", [None, None])
    return low is not None and high is not None and (low > 0 or high < 0)
