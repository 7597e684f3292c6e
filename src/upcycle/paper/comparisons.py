"""What the losses say without any law: upcycled models against the same mixture trained from scratch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from scipy.stats import t as student_t

from upcycle.laws.certificate.validate import SeedNoise
from upcycle.paper.inputs import Grid, Inputs

Verdict = Literal["clear", "part", "open", "against"]


@dataclass(frozen=True)
class Finding:
    """One sentence, and the numbers behind it."""

    sentence: str
    detail: str
    verdict: Verdict = "clear"
    """Whether the losses settle it: `clear`, in `part` (at some points), `open`, or `against` what the paper found."""


@dataclass(frozen=True)
class Lead:
    """By how much the upcycled model of one point is ahead of training from scratch."""

    D1: int
    D2: int
    nats: float
    """Loss from scratch minus loss of the upcycled model; positive: upcycling is ahead."""


Standing = Literal["ahead", "undecided", "behind"]


def standing(lead: Lead, bound: float) -> Standing:
    """Whether upcycling is ahead or behind by more than `bound` nats at a point, or undecided: exactly one of them."""
    return "ahead" if lead.nats > bound else "behind" if lead.nats < -bound else "undecided"


def tally(found: Iterable[Lead], bound: float) -> Counter[Standing]:
    """Number of points of each standing; they sum to the number of points."""
    return Counter(standing(lead, bound) for lead in found)


def leads(inputs: Inputs, grid: Grid, *, dense_tokens_count: bool = False) -> list[Lead]:
    """The lead at each point of a grid where scratch was trained on as many tokens: D2, or D1 + D2.

    Means over seeds. Budgets agree to within one part in a thousand (they are whole steps).
    """
    scratch = inputs.baseline(grid, "moe").groupby("D")["loss"].mean()
    found = []
    means = grid.rows.groupby(["D1", "D2"])["loss"].mean().reset_index()
    for D1, D2, loss in zip(means["D1"].tolist(), means["D2"].tolist(), means["loss"].tolist(), strict=True):
        tokens = D1 + D2 if dense_tokens_count else D2
        # D1 + D2 of whole steps need not be a whole number of steps of the other run.
        near = [D for D in scratch.index if math.isclose(D, tokens, rel_tol=1e-3)]
        if near:
            found.append(Lead(D1, D2, float(scratch[near[0]]) - loss))
    return found


def clear_difference(noise: SeedNoise) -> float:
    """Difference of two single losses that seeds alone exceed in 5 % of cases: t x sqrt(2) x deviation."""
    return float(student_t.ppf(0.975, noise.freedom)) * math.sqrt(2) * noise.deviation
