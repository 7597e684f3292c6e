"""Where upcycling and training a MoE from scratch change places: every crossing, its band, its distance to the data.

Three criteria. Against D1 (the paper's D*): training from scratch on D tokens against upcycling with D1 = D2 = D.
Against D2: both train the mixture on the same tokens, the dense model is given. Against FLOPs: the dense cost is sunk,
which is the comparison against D2 again since both mixtures have the same N2, or it is paid, and training from scratch
gets its FLOPs too. Roots are sought from LOW to HIGH; "none", "one" and "two" roots are answers.

A root more than a factor of `NEAR` outside the frame of the data (the range of tokens over all rows that the laws were
fitted to) is an accident of extrapolation: it is named and enters no band. Of the others, the one nearest the data is
reported. All roots of parameters as printed (Table 2) count, and the first of them is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from upcycle.decisions.curves import Rows, ThreeLaws, as_positive, central_95
from upcycle.decisions.roots import all_roots
from upcycle.laws.terms import Array
from upcycle.study.spec import short_count

LOW, HIGH = 1e4, 1e18
"""Tokens between which roots are sought: far beyond any data on both sides."""
RANGE = "1e4 to 1e18"
"""The same in words."""

NEAR = 10.0
"""Factor outside the frame of the data up to which a root counts, and tokens are told as a number."""

Ahead = Literal["upcycle", "scratch"]
WORDS: dict[Ahead, str] = {"upcycle": "upcycling", "scratch": "training from scratch"}
OTHER: dict[Ahead, Ahead] = {"upcycle": "scratch", "scratch": "upcycle"}


@dataclass(frozen=True)
class Threshold:
    """Every number of tokens at which the two ways give the same loss."""

    criterion: str
    """`D1` (Equation 13), `D2` or `FLOPs, dense cost paid`."""
    roots: tuple[float, ...]
    """Tokens (D* or D2) of those that count, ascending, central estimate; empty: none."""
    below: Ahead
    """Who is ahead below the first root, or wherever roots count if there is none."""
    draws: tuple[tuple[float, ...], ...]
    """Roots of each draw that count."""
    shares: Mapping[str, float]
    """Share of the draws with `none`, `one`, `two or more` roots; empty without draws."""
    band: tuple[float, float] | None
    """Central 95 % of the reported root among the draws that have one; None where fewer than two have."""
    outside: Mapping[str, float]
    """Distance in natural logarithms of the reported root's inputs (without a root: of those given) to the data."""
    statement: str
    """All of this in words."""
    within: str
    """The tokens between which roots count, in words."""
    root: float | None
    """The root to report: of those that count the one nearest the data."""
    slopes: tuple[float, ...] = ()
    """d (L_scratch - L_upcycled) / d ln tokens in nats at each root: a loss error of e moves it by about e / slope."""
    before: tuple[float, ...] = ()
    after: tuple[float, ...] = ()
    """Roots of the central estimate too far below and above the data to count."""

    def ahead(self, tokens: float) -> Ahead:
        """Who is ahead at this number of tokens, by the central estimate."""
        passed = sum(root < tokens for root in (*self.before, *self.roots, *self.after)) - len(self.before)
        return self.below if passed % 2 == 0 else OTHER[self.below]


Inputs = Callable[[Array], Mapping[str, ArrayLike]]
"""From tokens the inputs of a curve."""


@dataclass(frozen=True)
class Gap:
    """L_scratch - L_upcycled in nats along a line of tokens, of the central estimate and of every draw."""

    three: ThreeLaws
    scratch: Inputs
    upcycled: Inputs
    shift: float = 0.0
    """Added to the gap."""

    def on_grid(self, log_G: Array) -> Array:
        """The gap of every row [1 + B, G] at these ln tokens."""
        tokens_G = np.exp(log_G)
        moe_BG = self.three.need("moe").loss_rows(**self.scratch(tokens_G))
        return moe_BG - self.three.upcycled.loss_rows(**self.upcycled(tokens_G)) + self.shift

    def at_rows(self, rows_R: Rows, log_R: Array) -> Array:
        """The gap [R] of each row at its own ln tokens."""
        tokens_R = np.exp(log_R)
        moe_R = self.three.need("moe").loss_at(rows_R, **self.scratch(tokens_R))
        return moe_R - self.three.upcycled.loss_at(rows_R, **self.upcycled(tokens_R)) + self.shift

    def slope(self, log_tokens: float) -> float:
        """d gap / d ln tokens of the central estimate, by central differences (error about 1e-10)."""
        log_R = np.array([log_tokens - 1e-4, log_tokens + 1e-4])
        below, above = self.at_rows(np.zeros(2, dtype=np.intp), log_R)
        return float((above - below) / 2e-4)


def near_or_words(tokens: float, data: tuple[float, float] | None) -> str:
    """Tokens as a short number, or in words where they lie more than a factor of `NEAR` outside the data.

    That far out they are an accident of extrapolation: digits would claim what the laws cannot know.
    """
    if Window(data).counted((tokens,)):
        return short_count(tokens)
    return f"far {'below' if tokens < Window(data).low else 'above'} the data"


def band_in_words(band: tuple[float, float], data: tuple[float, float] | None) -> str:
    """The ends of a band, each as `near_or_words` has it; once where both lie equally far outside."""
    return " to ".join(dict.fromkeys(near_or_words(end, data) for end in band))


def d_star(three: ThreeLaws, n1: float, *, shift: float = 0.0) -> Threshold:
    """Equation 13. D* with L_moe(D*) = L_upcycled(D1 = D*, D2 = D*), at dense size n1.

    `shift`: nats added to L_moe - L_upcycled, to see what an error of the losses does. Raises `UserError` for a size
    that is not above 0 and for fits without a law of MoEs from scratch.
    """
    n1 = as_positive("n1", n1)
    gap = Gap(three, lambda D: {"D": D, "N1": n1}, lambda D: {"D1": D, "D2": D, "N1": n1}, shift)
    opening = f"At N1 = {short_count(n1)}, against as many tokens from scratch as the dense model has"
    return _threshold("D1", "D*", opening, gap)


def equation_2(n1: ArrayLike) -> Array:
    """Equation 2. The paper's approximation of D* in tokens, 4e9 n^(-0.7 + 0.04 ln n) with n = N1 / 1e9.

    It has a value everywhere, also where Equation 13 has no root, and its prefactor lies above what Table 2 gives.
    """
    n = np.asarray(n1, dtype=np.float64) / 1e9
    return np.asarray(4e9 * n ** (-0.7 + 0.04 * np.log(n)))


def threshold_d2(three: ThreeLaws, n1: float, d1: float) -> Threshold:
    """D2 with L_moe(D2) = L_upcycled(d1, D2): the same tokens for both, with a dense model of n1 and d1 given.

    Raises `UserError` as `d_star`.
    """
    return _of_parent(three, n1, d1, "D2", "against the same tokens from scratch", 0.0)


def threshold_flops(three: ThreeLaws, n1: float, d1: float) -> Threshold:
    """D2 at which both ways give the same loss for the FLOPs of both stages: the dense model's cost is paid, not sunk.

    Training from scratch gets 6 N2 D2 + 6 N1 d1 FLOPs, which is D2 + d1 N1 / N2 tokens; with the cost sunk it is
    `threshold_d2`. Raises `UserError` as `d_star`.
    """
    extra = d1 / three.active_ratio
    return _of_parent(three, n1, d1, "FLOPs, dense cost paid", "against the FLOPs of both stages from scratch", extra)


@dataclass(frozen=True)
class ApproximateDStar:
    """D* = prefactor n^(exponent + curvature ln n) tokens with n = N1 / 1e9, as Equation 2."""

    prefactor: float
    exponent: float
    curvature: float
    n1: Array
    d_star: Array
    """Reported roots that it was fitted to."""


def refit_equation_2(three: ThreeLaws, low: float = 1e9, high: float = 1e11, points: int = 41) -> ApproximateDStar:
    """Equation 2's form fitted to ln D* (reported roots, central estimate) at sizes from low to high, by least squares.

    Sizes without a root are left out; the numbers are NaN where fewer than three have one.
    """
    central = three.without_draws()
    sizes = np.geomspace(low, high, points)
    found = [(n1, root) for n1 in sizes if (root := d_star(central, n1).root) is not None]
    n1, tokens = np.array(found).reshape(-1, 2).T
    if len(n1) < 3:
        return ApproximateDStar(np.nan, np.nan, np.nan, n1, tokens)
    curvature, exponent, log_prefactor = np.polyfit(np.log(n1 / 1e9), np.log(tokens), 2)
    return ApproximateDStar(float(np.exp(log_prefactor)), float(exponent), float(curvature), n1, tokens)


def _of_parent(three: ThreeLaws, n1: float, d1: float, criterion: str, against: str, extra: float) -> Threshold:
    """D2 with L_moe(D2 + extra) = L_upcycled(d1, D2), a dense model of n1 and d1 being given."""
    n1, d1 = as_positive("n1", n1), as_positive("d1", d1)
    opening = f"With a dense model of N1 = {short_count(n1)} trained on {short_count(d1)} tokens, {against}"
    gap = Gap(three, lambda D2: {"D": D2 + extra, "N1": n1}, lambda D2: {"D1": d1, "D2": D2, "N1": n1})
    return _threshold(criterion, "D2", opening, gap)


@dataclass(frozen=True)
class Window:
    """Where roots count, and which of them is reported."""

    frame: tuple[float, float] | None
    """Fewest and most tokens of the data; None: roots count wherever they are sought."""

    @property
    def low(self) -> float:
        """Fewest tokens at which a root counts."""
        return LOW if self.frame is None else max(self.frame[0] / NEAR, LOW)

    @property
    def high(self) -> float:
        """Most tokens at which a root counts."""
        return HIGH if self.frame is None else min(self.frame[1] * NEAR, HIGH)

    @property
    def words(self) -> str:
        """Both, in words."""
        return RANGE if self.frame is None else f"{short_count(self.low)} to {short_count(self.high)}"

    def counted(self, roots: tuple[float, ...]) -> tuple[float, ...]:
        """Those of these tokens that lie between."""
        return tuple(root for root in roots if self.low <= root <= self.high)

    def reported(self, counted: tuple[float, ...]) -> float | None:
        """The root nearest the frame; of several within it, and without a frame, the first."""
        if not counted or self.frame is None:
            return counted[0] if counted else None
        low, high = self.frame
        return min(counted, key=lambda root: max(low / root, root / high, 1.0))


def _threshold(criterion: str, symbol: str, opening: str, gap: Gap) -> Threshold:
    found = all_roots(gap.on_grid, gap.at_rows, np.log(LOW), np.log(HIGH))
    window = Window(gap.three.tokens)
    everywhere, *in_draws = (tuple(float(np.exp(root)) for root in roots) for roots in found)
    roots, draws = window.counted(everywhere), tuple(map(window.counted, in_draws))
    before = tuple(root for root in everywhere if root < window.low)
    after = tuple(root for root in everywhere if root > window.high)
    # The gap is scratch's loss minus the upcycled one: above 0, upcycling is ahead.
    at_low: Ahead = "upcycle" if gap.on_grid(np.array([np.log(LOW)]))[0, 0] > 0 else "scratch"
    below = at_low if len(before) % 2 == 0 else OTHER[at_low]
    reported = [root for each in draws if (root := window.reported(each)) is not None]
    band = central_95(reported) if len(reported) > 1 else None  # one draw has no spread
    shares = _shares(draws)
    root = window.reported(roots)
    outside = _outside(gap, root)
    which, data = "first" if window.frame is None else "reported", gap.three.data_tokens
    # Of a root far outside the data even the distance is a digit too many: only that of what is given is told.
    told = root if root is not None and Window(data).counted((root,)) else None
    # "First" says which of several roots it is; "reported" alone does not.
    named = (
        f"{which} {symbol}"
        if window.frame is None or told is None or len(roots) < 2
        else (f"{which} {symbol} ({short_count(told)}, the root nearest the data)")
    )
    sentences = (
        _who(symbol, opening, everywhere, at_low, Window(data)),
        *_uncertainty(named, shares, band, len(draws), data),
        *_far(gap, _outside(gap, told), "" if told is None else f"{which} root"),
    )
    slopes = tuple(gap.slope(float(np.log(each))) for each in roots)
    statement = "; ".join(sentences) + "."
    return Threshold(
        criterion, roots, below, draws, shares, band, outside, statement, window.words, root, slopes, before, after
    )


def _shares(draws: tuple[tuple[float, ...], ...]) -> dict[str, float]:
    counts = np.array([len(each) for each in draws])
    if not len(counts):
        return {}
    shares = {"none": counts == 0, "one": counts == 1, "two or more": counts >= 2}
    return {name: float(which.mean()) for name, which in shares.items()}


def _outside(gap: Gap, root: float | None) -> dict[str, float]:
    """The larger distance of each input to the data of both laws; without a root, of inputs that do not vary."""
    at = np.array([LOW, HIGH]) if root is None else np.array(root)
    distances: dict[str, float] = {}
    for curve, inputs in ((gap.three.need("moe"), gap.scratch(at)), (gap.three.upcycled, gap.upcycled(at))):
        single = {name: value for name, value in inputs.items() if np.ndim(value) == 0}
        for name, distance in curve.outside(**single).items():
            distances[name] = max(distance, distances.get(name, 0.0))
    return distances


def _who(symbol: str, opening: str, everywhere: tuple[float, ...], at_low: Ahead, window: Window) -> str:
    """Who is ahead where: roots near the data by their numbers, those far outside it in words."""
    near = window.counted(everywhere)
    below, above = sum(root < window.low for root in everywhere), sum(root > window.high for root in everywhere)
    ahead = at_low if below % 2 == 0 else OTHER[at_low]
    where = f"{window.words} tokens" + ("" if window.frame is None else f", a factor of {NEAR:g} about the data")
    far = [f"{count} far {side}" for side, count in (("below", below), ("above", above)) if count]
    others = f"; {' and '.join(far)} the data" if far else ""
    if not near:
        return f"{opening}, {WORDS[ahead]} is ahead everywhere from {where}: no root there{others}"
    parts = [f"{WORDS[ahead]} is ahead below {symbol} = {short_count(near[0])} tokens"]
    for k, root in enumerate(near):
        ahead = OTHER[ahead]
        until = f"from there to {short_count(near[k + 1])}" if k + 1 < len(near) else f"above {short_count(root)}"
        parts.append(f"{WORDS[ahead]} {until}")
    count = {1: "one root", 2: "two roots"}.get(len(near), f"{len(near)} roots")
    return f"{opening}, {', '.join(parts)} ({count} in {where}{others})"


def _uncertainty(
    symbol: str,
    shares: Mapping[str, float],
    band: tuple[float, float] | None,
    count: int,
    data: tuple[float, float] | None,
) -> tuple[str, ...]:
    if count == 0:
        return ("no band is known, as there are no draws",)
    words = ", ".join(f"{share:.0%} have {name}" for name, share in shares.items() if share > 0)
    of_roots = f"of {count} draws {words}"
    if band is None:
        return (of_roots,)
    among = " among the draws that have one" if shares["none"] > 0 else ""
    return (f"95 % of the {symbol}{among}: {band_in_words(band, data)} (tokens)", of_roots)


def _far(gap: Gap, outside: Mapping[str, float], root: str) -> tuple[str, ...]:
    far = [f"{name} by a factor of {np.exp(distance):.3g}" for name, distance in outside.items() if distance > 0]
    where = f"the {root} lies" if root else "what is given lies"
    words = f"{where} outside the data in {', '.join(far)}" if far else f"{where} within the data's range"
    laws = {"the law from scratch": gap.three.need("moe"), "the upcycled law": gap.three.upcycled}
    blind = [name for name, curve in laws.items() if not curve.depends_on_size]
    if not blind:
        return (words,)
    verb = "knows" if len(blind) == 1 else "know"
    return words, f"{' and '.join(blind)} {verb} no model size, so the answer is that of the size fitted"
