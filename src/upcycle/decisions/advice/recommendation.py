"""What to do with a budget: upcycle, train a mixture from scratch, or train the dense model on, at equal FLOPs.

D1, D2 in tokens, N1 in non-embedding parameters, losses in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from upcycle.decisions.advice.expectations import SURE, Expected, compare_options
from upcycle.decisions.curves import ThreeLaws
from upcycle.decisions.thresholds import HIGH, LOW
from upcycle.laws.terms import Array

Option = Literal["upcycle", "scratch", "dense"]
OPTIONS: tuple[Option, ...] = ("upcycle", "scratch", "dense")


@dataclass(frozen=True)
class Stretch:
    """Budgets at which one option has the least expected loss."""

    option: Option
    low: float
    """D2 in tokens from which it has; 1e4 where the search begins."""
    high: float
    """D2 in tokens up to which it has; 1e18 where the search ends."""


@dataclass(frozen=True)
class Recommendation:
    """The option of least expected loss, how sure that is, and at which other budgets it would be another."""

    option: Option | None
    """None: no budget was given."""
    over: Option | None
    """The next best option."""
    lead: float | None
    """Expected loss of the next best option minus that of the best, in nats."""
    share: float | None
    """Share of the draws in which it beats each other option, the laws' own error included: the least of these."""
    sure: bool
    """Whether that share is at least 95 %."""
    stretches: tuple[Stretch, ...]
    """The best option at every budget, by the central estimates, in order of D2."""


def recommend(
    three: ThreeLaws, n1: float, d1: float, found: dict[Option, Expected], law_error: float | None
) -> Recommendation:
    """Compare the options' expected losses (`found`: empty without a budget; no `dense` without a dense law)."""
    open_budget = Recommendation(None, None, None, None, False, best_by_budget(three, n1, d1))
    if not found:
        return open_budget
    best, second, *_ = sorted(found, key=lambda option: found[option].loss)
    others = [found[option] for option in found if option != best]
    share = min(compare_options(found[best], other, law_error).share_with_error for other in others)
    lead = found[second].loss - found[best].loss
    return replace(open_budget, option=best, over=second, lead=lead, share=share, sure=share >= SURE)


def best_by_budget(three: ThreeLaws, n1: float, d1: float) -> tuple[Stretch, ...]:
    """Which option has the least expected loss from LOW to HIGH tokens D2; changes to about 1e-13 of ln D2."""

    def best(log_d2: Array) -> NDArray[np.intp]:
        d2 = np.exp(log_d2)
        losses = [three.upcycled.loss(D1=d1, D2=d2, N1=n1), three.need("moe").loss(D=d2, N1=n1)]
        if three.dense is not None:
            losses.append(three.dense.loss(D=d1 + three.active_ratio * d2, N1=n1))
        return np.argmin(losses, axis=0)

    grid = np.linspace(np.log(LOW), np.log(HIGH), 646)
    at = best(grid)
    changes = np.flatnonzero(at[:-1] != at[1:])
    low, high = grid[changes], grid[changes + 1]
    for _ in range(45):
        middle = (low + high) / 2
        before = best(middle) == at[changes]
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    ends = [LOW, *np.exp(high).tolist(), HIGH]
    options = [OPTIONS[k] for k in (at[0], *at[changes + 1])]
    return tuple(Stretch(*stretch) for stretch in zip(options, ends[:-1], ends[1:], strict=True))
