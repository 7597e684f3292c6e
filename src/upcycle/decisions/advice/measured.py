"""A mixture upcycled from a dense model against that model trained on, as one study measured both.

Both begin with the same finished dense model, such as an imported checkpoint, and see the same text. A token costs the
mixture N2 / N1 times the FLOPs that it costs the dense model, which at equal FLOPs is trained on that many times as
many tokens. D1, D2 in tokens (D2 since the dense model was finished), sizes in non-embedding parameters, losses in
nats. docs/own-model.md says how to read the answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import pandas as pd
from scipy.stats import t as student_t

from upcycle.decisions.advice.advice import budget_tokens
from upcycle.decisions.advice.expectations import (
    Comparison,
    Distance,
    Expected,
    Reach,
    ahead_by,
    compare_options,
    distances,
    expected,
    tokens_to_reach,
)
from upcycle.decisions.curves import Curve, curve_of, published
from upcycle.decisions.published import PAPER_ERROR
from upcycle.files import plain
from upcycle.laws.certificate.validate import SeedNoise, seed_noise
from upcycle.laws.result import FitResult
from upcycle.study.columns import GRID_SETTINGS
from upcycle.study.spec import EXPAND

Outcome = Literal["upcycle", "dense", "too close to call", "neither", "unknown"]
"""`neither`: both end above the dense model as it is. `unknown`: neither measured nor within reach of the laws."""

UPCYCLED = "upcycled"
SAME_TOKENS = "dense model trained on, same tokens"
SAME_FLOPS = "dense model trained on, same FLOPs"
REACH = 4.0
"""Factor outside the measured budgets up to which a law in D2 alone answers: two doublings."""
SAME_BUDGET = 1e-3
"""Relative difference up to which two budgets of whole steps are one."""
SAME_TEXT = ("dataset", "data_version", "tokenizer", "tokenizer_vocab")
"""Columns in which runs agree whose losses compare."""


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their budget and seed alone, and the law in D2 that was fitted to them."""

    rows: pd.DataFrame
    others: int = 0
    """Further settings that the study varied; these runs are of the one with most budgets, of equals the best."""
    fit: str = ""
    """Name of the fit; empty without one."""
    curve: Curve | None = None
    error: float | None = None
    """Error of a predicted loss in nats: leave-one-out RMS, else the RMS of the residuals."""
    doubt: str = ""
    """What the fit says of itself if its parameters are not identifiable."""

    @property
    def budgets(self) -> tuple[float, ...]:
        """Budgets in tokens, ascending."""
        return tuple(sorted({float(tokens) for tokens in self.rows["D"]}))

    def measured(self, tokens: float) -> tuple[float, float, bool] | None:
        """Loss at a budget, its variance in units of one run's, and whether it lies between two budgets.

        A mean over seeds; between two budgets linear in ln D2. None outside the measured budgets.
        """
        means = {budget: self._mean(budget) for budget in self.budgets}
        for budget, (loss, variance) in means.items():
            if math.isclose(budget, tokens, rel_tol=SAME_BUDGET):
                return loss, variance, False
        below, above = ([each for each in means if (each < tokens) == side] for side in (True, False))
        if not below or not above:
            return None
        low, high = max(below), min(above)
        share = math.log(tokens / low) / math.log(high / low)
        (loss, variance), (loss_high, variance_high) = means[low], means[high]
        spread = (1 - share) ** 2 * variance + share**2 * variance_high
        return (1 - share) * loss + share * loss_high, spread, True

    def _mean(self, budget: float) -> tuple[float, float]:
        losses = self.rows.loc[self.rows["D"] == budget, "loss"]
        return float(losses.mean()), 1 / len(losses)

    def reaches(self, tokens: float) -> bool:
        """Whether the law answers at a budget."""
        return self.curve is not None and self.budgets[0] / REACH <= tokens <= self.budgets[-1] * REACH


@dataclass(frozen=True)
class Rivals:
    """One finished dense model, upcycled and trained on."""

    model: str
    moe: str
    n1: float
    n2: float
    """Parameters that a token uses in the mixture (Equation 5)."""
    n_expert: int
    top_k: int
    d1: float
    imported: bool
    """Whether the dense model is an imported checkpoint, whose D1 its owner states."""
    parent_loss: float | None
    """Held-out loss of the dense model as it is; None where losses.csv lacks it."""
    upcycled: Arm
    continued: Arm
    noise: SeedNoise | None
    """Spread of a loss over seeds; None: no point was trained with two."""
    simulated: bool


@dataclass(frozen=True)
class Contrast:
    """The upcycled model and the dense model trained on, at one budget."""

    upcycled: float
    continued: float
    bands: tuple[tuple[float, float] | None, tuple[float, float] | None]
    """Central 95 % of the draws of a law; None of measured losses."""
    how: Literal["measured", "interpolated", "law"]
    """`interpolated`: one of the two lies between two measured budgets."""
    comparison: Comparison
    """Upcycled minus trained on; of measured losses with the noise between seeds, of laws draw by draw."""


@dataclass(frozen=True)
class Contrasts:
    """Both comparisons of one budget; None outside the measured budgets, or out of reach of the laws."""

    same_tokens: Contrast | None
    same_flops: Contrast | None


@dataclass(frozen=True)
class Budgeted:
    """One budget: D2 of the mixture."""

    tokens: float
    flops: float
    gpu_hours: float
    asked: bool
    """Whether it is the budget asked about; else one that was measured."""
    measured: Contrasts
    by_law: Contrasts
    """By the laws in D2 that the study fitted."""
    outcome: Outcome
    """At the same FLOPs, as measured; where that is missing, by the laws."""

    @property
    def decisive(self) -> Contrast | None:
        """The comparison that gives the outcome."""
        return self.measured.same_flops or self.by_law.same_flops


@dataclass(frozen=True)
class PublishedScratch:
    """A mixture trained from scratch against upcycling, by the paper's laws: of other data, tokenizer and sizes."""

    scratch: Expected
    upcycled: Expected
    comparison: Comparison
    catch_up: Reach
    """Tokens that training from scratch needs to reach the upcycled loss."""
    distances: tuple[Distance, ...]
    same_mixture: bool
    """Whether the laws are of this mixture."""


@dataclass(frozen=True)
class MeasuredAdvice:
    """The whole answer of `upcycle advise --study` for one dense model and mixture."""

    rivals: Rivals = field(repr=False)
    budgets: tuple[Budgeted, ...]
    """In order of D2; with a budget asked for, that one among them."""
    scratch: PublishedScratch
    """At the budget asked for, else at the largest measured."""

    @property
    def asked(self) -> Budgeted | None:
        """The budget asked about."""
        return next((each for each in self.budgets if each.asked), None)

    def to_json(self) -> dict[str, Any]:
        """The answer as plain data: docs/own-model.md lists the keys. Nothing is NaN or infinite."""
        question = {name: value for name, value in vars(self.rivals).items() if not isinstance(value, Arm)}
        question["noise"] = None if self.rivals.noise is None else asdict(self.rivals.noise)
        arms = {"upcycled": self.rivals.upcycled, "continued": self.rivals.continued}
        question |= {name: {"budgets": arm.budgets, "fit": arm.fit or None} for name, arm in arms.items()}
        scratch = asdict(self.scratch)
        for name in ("scratch", "upcycled"):
            del scratch[name]["rows"]
        budgets = [asdict(each) for each in self.budgets]
        return dict(plain({"question": question, "budgets": budgets, "scratch_by_published_law": scratch}))


def find_rivals(losses: pd.DataFrame, fits: Mapping[str, FitResult]) -> list[Rivals]:
    """Every dense model of a losses.csv that was both upcycled and trained on, once for each mixture.

    Of the settings that a study varied, the one with most budgets counts, of equals that of least mean loss.
    """
    finished = losses[(losses["role"] != "trunk") & losses["loss"].notna()]
    noise = seed_noise(finished)
    finished = finished.fillna({"tokenizer_vocab": 0})  # imported rows may lack it, and NaN is no key
    keys = ["model", "D1", *SAME_TEXT]
    continued = dict(iter(finished[finished["lineage"] == "cont"].groupby(keys)))
    # What begins with a mixture is no rival of a dense model of as many tokens.
    upcycled = finished[(finished["lineage"] == "up") & (finished["method"] != EXPAND)]
    found = []
    for key, rows in upcycled.groupby([*keys, "moe"], sort=False):
        if key[:-1] not in continued:
            continue
        arms = _with_laws(_best_arm(rows), _best_arm(continued[key[:-1]]), fits)
        first = arms[0].rows.iloc[0]
        dense = finished[finished["id"].isin({each for arm in arms for each in arm.rows["dense_parent"]})]
        found.append(
            Rivals(
                model=str(first["model"]),
                moe=str(first["moe"]),
                n1=float(first["N1"]),
                n2=float(first["N2"]),
                n_expert=int(first["n_expert"]),
                top_k=int(first["top_k"]),
                d1=float(first["D1"]),
                imported=bool(len(dense)) and bool((dense["role"] == "imported").all()),
                parent_loss=float(dense["loss"].mean()) if len(dense) else None,
                upcycled=arms[0],
                continued=arms[1],
                noise=noise,
                simulated=bool(finished["simulated"].any()),
            )
        )
    return found


def _best_arm(rows: pd.DataFrame) -> Arm:
    groups = [group for _, group in rows.groupby(list(GRID_SETTINGS), sort=False, dropna=False)]
    best = min(groups, key=lambda group: (-group["D"].nunique(), float(group["loss"].mean())))
    return Arm(best, others=len(groups) - 1)


def _with_laws(upcycled: Arm, continued: Arm, fits: Mapping[str, FitResult]) -> tuple[Arm, Arm]:
    """Both arms with their laws, as many draws of each; of one joint fit, if there is one, draw by draw together."""
    known = [_laws_of(arm, fits) for arm in (upcycled, continued)]
    both = set(known[0]) & set(known[1])
    arms = []
    for arm, laws in zip((upcycled, continued), known, strict=True):
        names = both or set(laws)
        if not names:
            return upcycled, continued
        name = min(sorted(names), key=lambda each: _rank(laws[each]))
        fit = laws[name]
        error = fit.rms if fit.loo_rms is None else fit.loo_rms
        doubt = "" if fit.identifiable else fit.statement
        arms.append(replace(arm, fit=name, curve=curve_of(fit), error=error, doubt=doubt))
    draws = min(arm.curve.n_draws for arm in arms if arm.curve)
    first, second = (replace(arm, curve=arm.curve and arm.curve.first_draws(draws)) for arm in arms)
    return first, second


def _laws_of(arm: Arm, fits: Mapping[str, FitResult]) -> dict[str, FitResult]:
    """Fits of losses of these runs alone, by name; of a fit `by: lineage` the group of these runs."""
    runs = set(arm.rows["id"])
    parts = {
        name: list(fit.group_fits.values()) if fit.by == "lineage" else [] if fit.by else [fit]
        for name, fit in fits.items()
        if fit.response == "loss"
    }
    return {name: part for name, each in parts.items() for part in each if part.ids and set(part.ids) <= runs}


def _rank(fit: FitResult) -> tuple[bool, int, float]:
    return not fit.identifiable, -len(fit.ids), math.inf if fit.loo_rms is None else fit.loo_rms


def advise_measured(
    rivals: Rivals,
    *,
    tokens: float | None = None,
    flops: float | None = None,
    gpu_hours: float | None = None,
    flops_per_second: float = 400e12,
) -> MeasuredAdvice:
    """Upcycle the dense model or train it on, with at most one of `tokens` (D2), `flops`, `gpu_hours` to spend.

    Raises `UserError` as `budget_tokens` does.
    """
    d2 = budget_tokens(6 * rivals.n2, flops_per_second, tokens, flops, gpu_hours)
    measured = [
        each for each in rivals.upcycled.budgets if d2 is None or not math.isclose(each, d2, rel_tol=SAME_BUDGET)
    ]
    budgets = sorted([*measured, *([] if d2 is None else [d2])])
    return MeasuredAdvice(
        rivals=rivals,
        budgets=tuple(_budgeted(rivals, each, each == d2, flops_per_second) for each in budgets),
        scratch=_by_published_law(rivals, d2 or budgets[-1], flops_per_second),
    )


def _budgeted(rivals: Rivals, tokens: float, asked: bool, rate: float) -> Budgeted:
    flops = 6 * rivals.n2 * tokens
    kinds = {SAME_TOKENS: tokens, SAME_FLOPS: tokens * rivals.n2 / rivals.n1}
    measured = Contrasts(*(_as_measured(rivals, tokens, against, other) for against, other in kinds.items()))
    by_law = Contrasts(*(_by_law(rivals, tokens, against, other, rate) for against, other in kinds.items()))
    row = Budgeted(tokens, flops, flops / rate / 3600, asked, measured, by_law, "unknown")
    return replace(row, outcome=_outcome(row.decisive, rivals.parent_loss))


def _outcome(found: Contrast | None, parent_loss: float | None) -> Outcome:
    if found is None:
        return "unknown"
    if parent_loss is not None and min(found.upcycled, found.continued) >= parent_loss:
        return "neither"
    outcomes: dict[str, Outcome] = {"upcycled": "upcycle", "other": "dense"}
    return outcomes.get(found.comparison.ahead, "too close to call")


def _as_measured(rivals: Rivals, tokens: float, against: str, other: float) -> Contrast | None:
    up, on = rivals.upcycled.measured(tokens), rivals.continued.measured(other)
    if up is None or on is None:
        return None
    difference, spread, band, share = up[0] - on[0], 0.0, None, float(up[0] < on[0])
    if rivals.noise is not None:
        spread = rivals.noise.deviation * math.sqrt(up[1] + on[1])
    if spread > 0 and rivals.noise is not None:
        half = float(student_t.ppf(0.975, rivals.noise.freedom)) * spread
        band = (difference - half, difference + half)
        share = float(student_t.cdf(-difference / spread, rivals.noise.freedom))
    comparison = Comparison(against, other, difference, band, share, share, ahead_by(share))
    return Contrast(up[0], on[0], (None, None), "interpolated" if up[2] or on[2] else "measured", comparison)


def _by_law(rivals: Rivals, tokens: float, against: str, other: float, rate: float) -> Contrast | None:
    up, on = rivals.upcycled, rivals.continued
    if up.curve is None or on.curve is None or not (up.reaches(tokens) and on.reaches(other)):
        return None
    found = [
        expected(what, curve, d2, 6 * size * d2, rate, D=d2, D1=rivals.d1, D2=d2, N1=rivals.n1)
        for what, curve, d2, size in ((UPCYCLED, up.curve, tokens, rivals.n2), (against, on.curve, other, rivals.n1))
    ]
    errors = [arm.error or 0.0 for arm in (up, on)]
    error = math.sqrt(sum(each**2 for each in errors) / 2)
    comparison = compare_options(found[0], found[1], error)
    return Contrast(found[0].loss, found[1].loss, (found[0].band, found[1].band), "law", comparison)


def _by_published_law(rivals: Rivals, tokens: float, rate: float) -> PublishedScratch:
    three = published()
    moe, flops = three.need("moe"), 6 * rivals.n2 * tokens
    upcycled = expected(UPCYCLED, three.upcycled, tokens, flops, rate, D1=rivals.d1, D2=tokens, N1=rivals.n1)
    scratch = expected("MoE from scratch, same FLOPs", moe, tokens, flops, rate, D=tokens, N1=rivals.n1)
    return PublishedScratch(
        scratch=scratch,
        upcycled=upcycled,
        comparison=compare_options(upcycled, scratch, PAPER_ERROR),
        catch_up=tokens_to_reach(moe, "D", upcycled.rows, N1=rivals.n1),
        distances=distances(three, rivals.n1, rivals.d1, (tokens,)),
        same_mixture=(rivals.n_expert, rivals.top_k) == (three.n_expert, three.top_k),
    )
