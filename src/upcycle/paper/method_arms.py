"""Upcycling methods beside each other: which runs are compared, how losses and the interaction differ, what routers do.

Methods are compared with `copy`, at the budgets and seeds that all of them have. Runs of one seed share the order of
data and, at one D1, the dense parent, so differences are paired by seed. Budgets are averaged within a seed first:
models of one seed that differ in D2 decay from one trunk, so they are no independent runs. The noise of the differences
is pooled over methods that begin with the parents of `copy`. Others (`expand`) vary more, with their own parents, and
are compared by their own spread over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from upcycle.errors import UserError
from upcycle.laws.result import FitResult
from upcycle.laws.tables.mixed_kernels import check_one_set_of_kernels
from upcycle.paper.inputs import Inputs
from upcycle.paper.paired import Difference, mean_difference, residual_noise
from upcycle.study.columns import EQUAL_SETTINGS

REFERENCE = "copy"
"""The method that the others are compared with: the paper's."""
LAST_SHARE = 0.1
"""Share of a run at its end over which routers are described: its decay."""
_OWN = (
    *("method", "moe", "settings", "n_expert", "top_k", "granularity", "shared_expert", "N2", "N_total"),
    *("D", "D1", "D2", "steps", "decay_fraction", "flops_6nd"),
)
"""Columns in which the runs of a comparison may differ: the method, the shape of its experts, and budgets."""


@dataclass(frozen=True)
class MethodArms:
    """The finished models of several upcycling methods at the budgets and seeds that all have."""

    arms: tuple[str, ...]
    """Names of the methods, with what tells two arms of one method apart; the reference first."""
    rows: pd.DataFrame
    """Rows of losses.csv, with a column `arm`."""
    every: pd.DataFrame
    """The same with the runs at budgets and seeds that only some methods have."""

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def others(self) -> tuple[str, ...]:
        """All arms but the reference."""
        return self.arms[1:]

    @property
    def D1(self) -> list[int]:
        """Budgets of the parents that are compared, in tokens, ascending."""
        return sorted(int(value) for value in self.rows["D1"].unique())

    @property
    def D2(self) -> list[int]:
        """Upcycled budgets that are compared, in tokens, ascending."""
        return sorted(int(value) for value in self.rows["D2"].unique())

    @property
    def corners(self) -> list[tuple[int, int]]:
        """The smallest and the largest D1, each at the smallest and the largest D2 that is compared there."""
        found: dict[tuple[int, int], None] = {}
        for D1 in (self.D1[0], self.D1[-1]):
            own = self.rows.loc[self.rows["D1"] == D1, "D2"]
            found |= dict.fromkeys([(D1, int(own.min())), (D1, int(own.max()))])
        return list(found)

    @property
    def seeds(self) -> int:
        """Seeds of each method and budget."""
        return int(self.rows["seed"].nunique())

    def losses(self, D1: int | None = None, D2: int | None = None) -> pd.DataFrame:
        """Mean losses over the budgets (all, or those of one D1, of one D2), [seeds, arms], nats."""
        rows = self.rows
        for name, value in (("D1", D1), ("D2", D2)):
            rows = rows if value is None else rows[rows[name] == value]
        return rows.pivot_table(index="seed", columns="arm", values="loss")[list(self.arms)]

    def interactions(self) -> pd.DataFrame | None:
        """The slope of the loss in ln D2 at the largest D1 minus that at the smallest, [seeds, arms], nats.

        Positive: the better the dense model was trained, the less more upcycled training gains. None without two D1
        that have two D2 in common.
        """
        low, high = (self.rows[self.rows["D1"] == D1] for D1 in (self.D1[0], self.D1[-1]))
        common = sorted(set(low["D2"]) & set(high["D2"]))
        if len(self.D1) < 2 or len(common) < 2:
            return None
        slopes = []
        for rows in (high, low):
            losses = rows[rows["D2"].isin(common)].pivot_table(index="D2", columns=["seed", "arm"], values="loss")
            slopes.append(pd.Series(np.polyfit(np.log(losses.index), losses.to_numpy(), 1)[0], losses.columns))
        return (slopes[0] - slopes[1]).unstack("arm")[list(self.arms)]

    @cached_property
    def paired(self) -> tuple[str, ...]:
        """The other arms that begin with the reference's parents."""
        parents = {arm: set(self.rows.loc[self.rows["arm"] == arm, "dense_parent"]) for arm in self.arms}
        return tuple(arm for arm in self.others if parents[arm] == parents[self.reference])

    def differences(self, table: pd.DataFrame) -> dict[str, Difference]:
        """Each other arm's values minus the reference's, of a table [seeds, arms].

        Noise alone makes any of the paired arms clear with a probability of 5 %, and any of the others with 5 %.
        """
        pooled = residual_noise([table[[self.reference, *self.paired]]])
        found = {}
        for arm in self.others:
            values = (table[arm] - table[self.reference]).tolist()
            if arm in self.paired:
                found[arm] = mean_difference([values], pooled, among=len(self.paired))
            else:
                own = (float(np.std(values, ddof=1)) / math.sqrt(2), len(values) - 1) if len(values) > 1 else None
                found[arm] = mean_difference([values], own, among=len(self.others) - len(self.paired))
        return found


def compare_methods(inputs: Inputs, sweeps: Sequence[str] | None = None) -> MethodArms:
    """The upcycling methods of these sweeps (None: of all that upcycle).

    Raises `UserError` for one method alone, without runs of `copy`, for runs that differ in more than the method, that
    have no budget and seed in common, or that were computed by different kernels.
    """
    if sweeps is None:
        sweeps = [name for name in inputs.sweep_names() if (inputs.in_sweep(name)["lineage"] == "up").all()]
    where = f"methods in sweep{'s' if len(sweeps) > 1 else ''} {', '.join(sweeps)}"
    found = [inputs.in_sweep(name) for name in sweeps]
    rows = pd.concat(found).drop_duplicates("id") if found else inputs.losses
    rows = rows[rows["lineage"] == "up"]
    if rows[["method", "settings"]].drop_duplicates().shape[0] < 2:
        methods = ", ".join(rows["method"].unique()) or "none"
        raise UserError(f"{where}: all upcycled runs are of one method ({methods}), there is nothing to compare")
    for column in EQUAL_SETTINGS:
        if column not in _OWN and rows[column].nunique(dropna=False) > 1:
            values = ", ".join(map(str, rows[column].unique()[:3]))
            raise UserError(f"{where}: runs differ in {column} too ({values}): name sweeps that differ in the method")
    check_one_set_of_kernels(rows, where)
    rows = rows.assign(arm=arm_names(rows))
    reference = _reference(rows, where)
    arms = (reference, *(arm for arm in rows["arm"].unique() if arm != reference))
    return MethodArms(arms, _in_common(rows, arms, where), rows)


def arm_names(rows: pd.DataFrame) -> list[str]:
    """The method of each row, and in brackets what tells several arms of one method apart."""
    kinds = [
        {"method": method, "mixture": moe} | dict(part.split("=", 1) for part in str(settings).split(";") if part)
        for method, moe, settings in zip(rows["method"], rows["moe"], rows["settings"], strict=True)
    ]
    names = []
    for kind in kinds:
        alike = [other for other in kinds if other["method"] == kind["method"]]
        details = [
            value.replace("_", " ") if key == "mixture" else _setting(key, value)
            for key, value in kind.items()
            if any(other.get(key) != value for other in alike)
        ]
        names.append(kind["method"].replace("_", " ") + (f" ({', '.join(details)})" if details else ""))
    return names


def _setting(path: str, value: str) -> str:
    """`shared indices` for `upcycling.shared_indices=true` (false: `separate indices`), `share 0.5` for a number."""
    name = path.rpartition(".")[2].replace("_", " ")
    without = name.replace("shared", "separate") if "shared" in name else f"no {name}"
    return {"true": name, "false": without}.get(value, f"{name} {value}")


def _reference(rows: pd.DataFrame, where: str) -> str:
    """The arm of method `copy`; of several the one with the fewest settings."""
    copies = rows[rows["method"] == REFERENCE]
    if copies.empty:
        raise UserError(f"{where}: no run of method `{REFERENCE}`, which the others are compared with; add its sweep")
    if copies["moe"].nunique() > 1:
        mixtures = ", ".join(copies["moe"].unique())
        raise UserError(f"{where}: method `{REFERENCE}` has several mixtures ({mixtures}); name sweeps of one mixture")
    return str(copies["arm"].iloc[int(copies["settings"].map(len).argmin())])


def _in_common(rows: pd.DataFrame, arms: Sequence[str], where: str) -> pd.DataFrame:
    """Rows at the budgets and seeds that all arms have: of the most seeds, and then the most budgets."""
    place = ["D1", "D2", "seed"]
    if (twice := rows.duplicated([*place, "arm"], keep=False)).any():
        first, second = rows.loc[twice, "id"][:2]
        raise UserError(f"{where}: {first} and {second} are of one method, budget and seed; name other sweeps")
    count = rows.groupby(place)["arm"].nunique()
    shared = count[count == len(arms)].index.to_frame(index=False)
    if shared.empty:
        raise UserError(
            f"{where}: no D1, D2 and seed have runs of all methods ({', '.join(arms)}); give them budgets and seeds in "
            "common, or name other sweeps"
        )
    seeds = shared.groupby(["D1", "D2"])["seed"].agg(frozenset)
    best = max(set(seeds), key=lambda each: (len(each), sum(each <= other for other in seeds)))
    cells = {cell for cell, its in seeds.items() if best <= its}
    kept = [
        (D1, D2) in cells and seed in best for D1, D2, seed in zip(rows["D1"], rows["D2"], rows["seed"], strict=True)
    ]
    return rows[kept]


def own_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval of the mean of one value a seed; None with one seed."""
    if len(values) < 2:
        return None
    half = float(student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def law_by_arm(inputs: Inputs, found: MethodArms, law: str = "multiplicative") -> dict[str, FitResult]:
    """The fits of a law to the runs of one method, by arm; of several the one to most runs."""
    fits: dict[str, FitResult] = {}
    for arm in found.arms:
        own = set(found.every.loc[found.every["arm"] == arm, "id"])
        fitted = [fit for fit in inputs.fits.values() if fit.law == law and fit.by is None and set(fit.ids) <= own]
        if fitted:
            fits[arm] = max(fitted, key=lambda fit: fit.n)
    return fits


# What routers do during training


@dataclass(frozen=True)
class RouterCurves:
    """A method's routers and experts during training, means over seeds."""

    tokens: Sequence[int]
    """After the updates that have a row in metrics.jsonl."""
    entropy: Sequence[float]
    """Entropy of the router's probabilities as a share of ln E, its maximum; mean over layers."""
    dead: Sequence[float]
    """Share of the experts of all layers that no token of an update's batch was sent to."""
    heldout_tokens: Sequence[int]
    """At the held-out losses."""
    distance: Sequence[float]
    """The largest distance between two experts of a layer over the first one's norm; the largest of all layers. Empty
    for runs by several processes, which do not measure it."""

    def last(self) -> tuple[float, float, float]:
        """Entropy and dead experts over the last tenth of training, and the last distance (NaN if not measured)."""
        late = np.array(self.tokens) > (1 - LAST_SHARE) * self.tokens[-1]
        return (
            float(np.mean(np.array(self.entropy)[late])),
            float(np.mean(np.array(self.dead)[late])),
            self.distance[-1] if self.distance else math.nan,
        )


def router_curves(inputs: Inputs, found: MethodArms) -> dict[str, RouterCurves]:
    """By arm, at the largest D2 and of these the largest D1; empty for losses without run folders.

    Raises `UserError` naming a curve that is missing or damaged.
    """
    if inputs.mark:
        return {}
    rows = found.rows[found.rows["D2"] == found.D2[-1]]
    rows = rows[rows["D1"] == rows["D1"].max()]
    return {arm: _router_curves(inputs, rows[rows["arm"] == arm]) for arm in found.arms}


def _router_curves(inputs: Inputs, rows: pd.DataFrame) -> RouterCurves:
    updates, heldout = [], []
    for run_id, n_expert in zip(rows["id"], rows["n_expert"].tolist(), strict=True):
        curve = inputs.curve(run_id)
        most = math.log(n_expert) or 1.0
        for row in curve:
            if "entropy" in row:
                layers = row["entropy"]
                share = float(np.mean(layers)) / most
                updates.append((row["tokens"], share, row["dead"] / (len(layers) * n_expert)))
            if "expert_distance" in row:
                heldout.append((row["tokens"], max(row["expert_distance"])))
    routing = pd.DataFrame(updates, columns=["tokens", "entropy", "dead"]).groupby("tokens").mean()
    apart = pd.DataFrame(heldout, columns=["tokens", "distance"]).groupby("tokens").mean()
    return RouterCurves(
        list(routing.index), list(routing["entropy"]), list(routing["dead"]), list(apart.index), list(apart["distance"])
    )
