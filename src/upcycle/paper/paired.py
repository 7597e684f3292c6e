"""Losses of an ablation's arms with their seeds beside each other: differences, and the noise of seeds in them.

Runs of two arms with one seed share initial weights and the order of data, so their difference varies less from seed to
seed than either loss does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from upcycle.errors import UserError
from upcycle.paper.render import plural, signed


class GridPoint(NamedTuple):
    """Where arms are compared: a kind of training, a size, a mixture and its budgets in tokens."""

    lineage: str
    model: str
    moe: str
    D1: int
    D: int


@dataclass(frozen=True)
class Difference:
    """Mean loss of an arm minus that of another, over points and seeds."""

    nats: float
    error: float | None
    """Standard error over seeds; None with one seed."""
    freedom: int
    """Degrees of freedom of the error."""
    values: tuple[float, ...]
    """The differences of single runs, one a point and seed."""
    among: int = 1
    """Comparisons of which this is one: the probability that noise alone makes any of them clear is 5 %."""

    @property
    def bound(self) -> float:
        """Half the 95 % interval, in nats; infinite with one seed."""
        if self.error is None:
            return math.inf
        return float(student_t.ppf(1 - 0.025 / self.among, self.freedom)) * self.error

    @property
    def clear(self) -> bool:
        """Whether it is beyond the noise of seeds."""
        return abs(self.nats) > self.bound

    def __str__(self) -> str:
        if self.error is None:
            return f"{signed(self.nats)} nats (one seed, so it may be chance)"
        decimals = 3 if self.error >= 0.001 else 4
        return (
            f"{signed(self.nats, decimals)} ± {self.error:.{decimals}f} nats "
            f"({'clear' if self.clear else 'within noise'})"
        )


@dataclass(frozen=True)
class Ablation:
    """Losses of the arms of an ablation: at each point a table [seeds, arms], arms in their order."""

    arms: tuple[str, ...]
    tables: Mapping[GridPoint, pd.DataFrame]
    rows: pd.DataFrame
    """The rows of losses.csv, with a column `arm`."""

    @classmethod
    def of(cls, rows: pd.DataFrame, names: Sequence[str], order: Iterable[str], where: str) -> Ablation:
        """Rows of losses.csv, the name of each one's arm, and the arms in order.

        `where` names the sweeps. Raises `UserError` for one arm alone, and for two runs of one arm, point and seed.
        """
        rows = rows.assign(arm=list(names))
        arms = tuple(dict.fromkeys(name for name in order if name in set(names)))
        if len(arms) < 2:
            raise UserError(f"{where}: all runs are of one kind ({arms[0]}), there is nothing to compare")
        place = list(GridPoint._fields)
        if (twice := rows.duplicated([*place, "arm", "seed"], keep=False)).any():
            first, second = rows.loc[twice, "id"][:2]
            raise UserError(f"{where}: {first} and {second} differ in more than what is compared; name other sweeps")
        tables = {}
        for _, group in rows.groupby(place):
            first = group.iloc[0]
            point = GridPoint(first["lineage"], first["model"], first["moe"], int(first["D1"]), int(first["D"]))
            tables[point] = group.pivot_table(index="seed", columns="arm", values="loss").reindex(columns=list(arms))
        return cls(arms, tables, rows)

    @property
    def longest(self) -> GridPoint:
        """The point with the most tokens, and of these with the most dense tokens."""
        return max(self.tables, key=lambda point: (point.D, point.D1))

    @cached_property
    def noise(self) -> tuple[float, int] | None:
        """Standard deviation of a loss, apart from what its arm, point and seed explain, and its degrees of freedom.

        None without two seeds that all arms of a point have.
        """
        return residual_noise(self.tables.values())

    @cached_property
    def seeds(self) -> int:
        """The most seeds that a point has in all of its arms."""
        return max(len(table.dropna()) for table in self.tables.values())

    def difference(
        self, arm: str, reference: str, points: Iterable[GridPoint] | None = None, *, among: int = 1
    ) -> Difference | None:
        """The loss of `arm` minus that of `reference`, over these points (all); None where no point has both."""
        chosen = self.tables if points is None else {point: self.tables[point] for point in points}
        found = [(table[arm] - table[reference]).dropna().tolist() for table in chosen.values()]
        found = [values for values in found if values]
        return mean_difference(found, self.noise, among=among) if found else None

    def loss(self, arm: str) -> float:
        """Mean loss of an arm in nats, over points and seeds."""
        return float(np.mean([table[arm].mean() for table in self.tables.values()]))

    def how(self) -> str:
        """How differences and their errors were taken, in a sentence."""
        over = [f"{self.seeds} seeds"] if self.noise else []
        over += ["budgets"] if len(self.tables) > len({(point.lineage, point.model) for point in self.tables}) else []
        if not over:
            return ""
        error = ""
        if self.noise:
            error = f", paired by seed; after ± their standard error ({plural(self.noise[1], 'degree')} of freedom)"
        return f"Differences are means over {' and '.join(over)}{error}."


def residual_noise(tables: Iterable[pd.DataFrame]) -> tuple[float, int] | None:
    """Pooled over tables [seeds, arms]: the deviation of a loss from the sum of its arm's and its seed's means."""
    squares, freedom = 0.0, 0
    for table in tables:
        loss_SA = table.dropna().to_numpy(float)
        seeds, arms = loss_SA.shape
        if seeds > 1 and arms > 1:
            rest_SA = loss_SA - loss_SA.mean(axis=0) - loss_SA.mean(axis=1, keepdims=True) + loss_SA.mean()
            squares += float((rest_SA**2).sum())
            freedom += (seeds - 1) * (arms - 1)
    return (math.sqrt(squares / freedom), freedom) if freedom else None


def mean_difference(
    values: Sequence[Sequence[float]], noise: tuple[float, int] | None, *, among: int = 1
) -> Difference:
    """The mean over points of differences [points][seeds] of single runs, with its error by the noise of a loss."""
    means = [float(np.mean(each)) for each in values]
    error, freedom = None, 0
    if noise is not None and min(map(len, values)) > 1:
        deviation, freedom = noise
        error = deviation * math.sqrt(2 * sum(1 / len(each) for each in values)) / len(values)
    return Difference(float(np.mean(means)), error, freedom, tuple(v for each in values for v in each), among)
