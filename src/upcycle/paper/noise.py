"""How far losses of equal runs lie apart when only the seed differs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from upcycle.paper.inputs import Inputs

_POINT = ["model", "moe", "gate", "lineage", "role", "D", "D1", "method", "schedule"]
"""What runs at one point have in common."""


@dataclass(frozen=True)
class SeedNoise:
    """The spread of a finished loss over seeds, pooled over the points that were repeated."""

    deviation: float
    """Standard deviation of one loss, nats."""
    points: int
    """Points trained with more than one seed."""
    runs: int
    freedom: int
    """Degrees of freedom of the pooled estimate: runs - points."""


def seed_noise(inputs: Inputs) -> SeedNoise | None:
    """Pooled standard deviation over repeated points; None where no point was repeated.

    A sweep that varies more than seeds at one point (an ablation) is no repetition: its groups hold a seed twice
    and are left out.
    """
    squares, points, runs = 0.0, 0, 0
    for _, group in inputs.losses.groupby(_POINT, dropna=False):
        if len(group) > 1 and group["seed"].is_unique:
            squares += float(((group["loss"] - group["loss"].mean()) ** 2).sum())
            points, runs = points + 1, runs + len(group)
    if points == 0:
        return None
    return SeedNoise(math.sqrt(squares / (runs - points)), points, runs, runs - points)
