"""What the three laws expect of a dense model and a budget: losses with bands, comparisons, distances to the data.

D, D1, D2 in tokens, N1 in non-embedding parameters, losses in nats. Arrays [1 + B] hold the central estimate first,
then the draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from upcycle.decisions.curves import Curve, ThreeLaws, central_95
from upcycle.decisions.published import D_RANGE, N1_RANGE
from upcycle.files import plain
from upcycle.laws.terms import Array
from upcycle.study.spec import short_count

Ahead = Literal["upcycled", "other", "too close to call"]
Verdict = Literal["upcycle", "scratch", "too close to call", "depends on the budget"]

SURE = 0.95
"""Share of draws from which on a side is called ahead."""
TOKENS_PER_PARAMETER = (D_RANGE[1] / 16 / N1_RANGE[1], D_RANGE[0] * 16 / N1_RANGE[0])
"""Smallest (of the largest model) and largest (of the smallest model) tokens per parameter of the paper's runs."""
_SEARCHED = (1.0, 1e21)
"""Tokens between which a loss is looked for."""


@dataclass(frozen=True)
class Expected:
    """One option, and its expected loss."""

    what: str
    tokens: float
    """Tokens of the training that is paid for now (of dense training, for the dense model)."""
    flops: float
    """6 N D of the training that is paid for now."""
    gpu_hours: float
    loss: float
    band: tuple[float, float] | None
    """Central 95 % of the draws; None: no uncertainty is known."""
    rows: Array = field(repr=False, compare=False)
    """Central estimate and draws [1 + B]."""


@dataclass(frozen=True)
class Comparison:
    """The upcycled model against one alternative."""

    against: str
    tokens: float
    """Tokens of the alternative."""
    difference: float
    """Upcycled minus alternative, in nats: below 0, upcycled is ahead."""
    band: tuple[float, float] | None
    share_of_draws: float
    """Share of the draws in which upcycled is ahead."""
    share_with_error: float
    """The same with the laws' own error on both losses of every draw."""
    ahead: Ahead
    """A side is ahead if it is in 95 % of the draws, the laws' own error included."""


@dataclass(frozen=True)
class Distance:
    """How far one input lies outside the data."""

    input: str
    value: float
    low: float
    high: float
    factor: float
    """Above the largest: value / largest; below the smallest: value / smallest; inside: 1."""
    words: str


@dataclass(frozen=True)
class Reach:
    """Tokens at which one curve comes down to a given loss."""

    tokens: float | None
    """Central estimate; None: never."""
    band: tuple[float | None, float | None] | None
    """Central 95 % of the draws, those that never reach it counted as infinite: an end of None is never."""
    share_never: float | None
    """Share of the draws in which it is never reached; None: no uncertainty is known."""


def expected(what: str, curve: Curve, tokens: float, flops: float, rate: float, **inputs: float) -> Expected:
    """The loss of a curve at these inputs, at `rate` FLOP/s a GPU."""
    rows = curve.loss_rows(**inputs)
    return Expected(what, tokens, flops, flops / rate / 3600, float(rows[0]), band_of(rows), rows)


def band_of(rows: Array) -> tuple[float, float] | None:
    """Central 95 % of the draws of an array [1 + B]; None if there are none."""
    return central_95(rows[1:]) if len(rows) > 1 else None


def compare_options(upcycled: Expected, other: Expected, law_error: float | None) -> Comparison:
    """Upcycled against one alternative, draw by draw."""
    gap = upcycled.rows - other.rows
    draws = gap[1:] if len(gap) > 1 else gap
    share = float(np.mean(draws < 0))
    # each of the two losses has an error of its own, so their difference has sqrt(2) times it
    with_error = float(ndtr(-draws / (2**0.5 * law_error)).mean()) if law_error else share
    return Comparison(other.what, other.tokens, float(gap[0]), band_of(gap), share, with_error, ahead_by(with_error))


def ahead_by(share: float) -> Ahead:
    """Who is ahead, where upcycling is ahead with this probability."""
    if share >= SURE:
        return "upcycled"
    return "other" if share <= 1 - SURE else "too close to call"


def verdict_of(scratch: Comparison) -> Verdict:
    """What a comparison with training from scratch says to do."""
    verdicts: dict[Ahead, Verdict] = {"upcycled": "upcycle", "other": "scratch"}
    return verdicts.get(scratch.ahead, "too close to call")


def tokens_to_reach(curve: Curve, name: str, target: Array, **others: float) -> Reach:
    """Tokens `name` at which a curve has come down to the losses `target` [1 + B], by bisection in log tokens.

    For each draw its own curve and its own target. A curve rises where a draw has a negative exponent.
    """
    rows = np.arange(len(target))
    fixed = {key: np.full(len(target), value) for key, value in others.items()}

    def above(log_tokens: Array) -> NDArray[np.bool_]:
        return curve.loss_at(rows, **{name: np.exp(log_tokens)}, **fixed) > target

    low, high = (np.full(len(target), np.log(end)) for end in _SEARCHED)
    never = above(high)
    for _ in range(60):  # 48 e-folds, halved down to rounding
        middle = (low + high) / 2
        up = above(middle)
        low, high = np.where(up, middle, low), np.where(up, high, middle)
    tokens = np.where(never, np.inf, np.exp(high))
    band = None
    if len(tokens) > 1:
        # no interpolation: between a number and infinity there is none
        ends = np.quantile(tokens[1:], [0.025, 0.975], method="inverted_cdf")
        band = (plain(ends[0]), plain(ends[1]))
    return Reach(plain(tokens[0]), band, float(np.mean(never[1:])) if len(tokens) > 1 else None)


def distances(three: ThreeLaws, n1: float, d1: float, tokens: tuple[float, ...]) -> tuple[Distance, ...]:
    """How far N1, D1 and the smallest and largest of the budgets lie outside the data of the laws."""
    up, moe = three.upcycled.box, three.need("moe").box
    boxes = [("N1", n1, up.get("N1")), ("D1", d1, up.get("D1"))]
    names = ("D2",) if len(tokens) == 1 else ("the table's smallest D2", "the table's largest D2")
    for name, d2 in zip(names, (min(tokens), max(tokens)), strict=False):
        boxes.append((name, d2, up.get("D2")))
        if moe.get("D") != up.get("D2"):
            boxes.append((f"{name} from scratch", d2, moe.get("D")))
    if three.rounded:
        boxes.append(("D1 / N1", d1 / n1, TOKENS_PER_PARAMETER))
    return tuple(_distance(name, value, *box) for name, value, box in boxes if box is not None)


def _distance(name: str, value: float, low: float, high: float) -> Distance:
    text, inside = short_count(value), f"{short_count(low)} to {short_count(high)}"
    if value > high * (1 + 1e-9):
        factor = value / high
        words = f"{name} is {times_in_words(factor)} the largest fitted ({text}; data {inside})"
    elif value < low * (1 - 1e-9):
        factor = value / low
        words = f"{name} is {times_in_words(1 / factor)} below the smallest fitted ({text}; data {inside})"
    else:
        factor, words = 1.0, f"{name} is within the data ({text}; data {inside})"
    return Distance(name, value, low, high, factor, words)


def times_in_words(factor: float) -> str:
    """A factor of 1 or more: `6.4 times`."""
    return f"{factor:.2g} times" if factor < 100 else f"{factor:,.0f} times"
