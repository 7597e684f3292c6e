"""Two numbers that qualify a comparison of laws: how certain a ratio of errors is, and whether a law fits at all.

Another draw of 5 x 5 losses might choose another law, and the best of several laws may still miss the losses by more
than seeds differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import f as fisher

from upcycle.laws.certificate.validate import SeedNoise
from upcycle.laws.terms import Array

DRAWS = 10_000


@dataclass(frozen=True)
class ErrorRatio:
    """Ratio of two laws' leave-one-out RMS errors at the same points, with 95 % intervals of a paired bootstrap."""

    ratio: float
    by_points: tuple[float, float]
    """Points are drawn with replacement: as if each error were an independent one."""
    by_groups: tuple[float, float] | None
    """Whole groups are drawn: errors of one group may be alike. None for fewer than three groups."""

    @property
    def clear(self) -> bool:
        """Whether every interval lies above 1."""
        return self.by_points[0] > 1 and (self.by_groups is None or self.by_groups[0] > 1)


def error_ratio(error_N: Array, against_N: Array, group_N: Sequence[float], *, seed: int = 0) -> ErrorRatio:
    """RMS of `error_N` over RMS of `against_N`, errors in nats of the same points [N]; `group_N`: say, their D1."""
    rng = np.random.default_rng(seed)
    squares_2N = np.stack([error_N, against_N]) ** 2
    members_GN = np.unique(group_N)[:, None] == np.asarray(group_N)

    def interval(squares_2K: Array) -> tuple[float, float]:
        count = squares_2K.shape[1]
        drawn_2B = squares_2K[:, rng.integers(count, size=(DRAWS, count))].sum(axis=2)
        low, high = np.quantile(np.sqrt(drawn_2B[0] / drawn_2B[1]), (0.025, 0.975))
        return float(low), float(high)

    by_groups = interval(squares_2N @ members_GN.T) if len(members_GN) > 2 else None
    ratio = float(np.sqrt(squares_2N[0].sum() / squares_2N[1].sum()))
    return ErrorRatio(ratio, interval(squares_2N), by_groups)


@dataclass(frozen=True)
class LackOfFit:
    """F test of a law's residuals against the noise between seeds."""

    F: float
    """Mean square of the residuals over the variance between seeds."""
    freedom: tuple[int, int]
    """Degrees of freedom: losses minus parameters, and those of the noise."""
    p: float
    """Probability of so large an F if the law were true."""


def lack_of_fit(residual_N: Array, parameters: int, noise: SeedNoise) -> LackOfFit | None:
    """Whether residuals in nats [N] of a law of so many fitted parameters are no larger than seeds explain.

    The residuals are of the Huber fit, whose sum of squares is no less than the least that the law allows: F is an
    upper bound. None where no degrees of freedom are left.
    """
    left = len(residual_N) - parameters
    if left < 1:
        return None
    F = float((np.asarray(residual_N) ** 2).sum() / left / noise.deviation**2)
    return LackOfFit(F, (left, noise.freedom), float(fisher.sf(F, left, noise.freedom)))
