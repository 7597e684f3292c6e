"""Ablations that are grids: D1 and D2 on other texts (Figure 11), learning rates of several sizes (3.1, Table 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from upcycle.errors import UserError
from upcycle.paper.ablations import Observation, joined, named, rows_of, short
from upcycle.paper.comparisons import Finding, Verdict
from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.paired import Difference, mean_difference, residual_noise
from upcycle.paper.render import number
from upcycle.paper.tables_data import LAWS, law_errors
from upcycle.study.spec import short_count

REJECTED = 0.05
"""A law whose lack of fit is less probable than this is rejected."""

# Figure 11: other texts


def text_of(grid: Grid) -> str:
    """The data set that a grid was trained on."""
    return str(grid.rows["dataset"].iloc[0])


def see_texts(inputs: Inputs, sweeps: Sequence[str], model: str | None = None) -> Observation:
    """Figure 11 in words.

    Raises `UserError` without a fit of Equation 8 to each.
    """
    grids = [inputs.grid(name, model) for name in sweeps]
    for grid in grids:
        inputs.fit(grid, "multiplicative")
    errors = {text_of(grid): law_errors(inputs, grid) for grid in grids}
    verdicts = [_best_is_multiplicative(inputs, grid) for grid in grids]
    compared = [text for text, found in errors.items() if len(found) > 1]
    if not compared:
        first = "Equation 8 was fitted without another law beside it"
    else:
        best = [text for text in compared if min(errors[text], key=errors[text].__getitem__) == "multiplicative"]
        clear = [text_of(grid) for grid, verdict in zip(grids, verdicts, strict=True) if verdict == "clear"]
        how = "clearly" if set(best) == set(clear) else f"clearly on {joined(clear)}" if clear else "nowhere clearly"
        first = (
            f"Of the fitted laws Equation 8 has the lowest leave-one-out error on {joined(best)}, {how}"
            if best
            else f"Equation 8 has the lowest leave-one-out error on none of {joined(compared)}"
        )
    details = []
    for text, found in errors.items():
        laws = [f"{LAWS[law]} {number(found[law], 2)}" for law in sorted(found, key=found.__getitem__)]
        details.append(f"{text}: {', '.join(laws)}")
    details = [f"Leave-one-out errors in nats: {'; '.join(details)}."]
    tests = {text_of(grid): inputs.lack_of_fit(inputs.fit(grid, "multiplicative")) for grid in grids}
    if rejected := [text for text, test in tests.items() if test is not None and test.p < REJECTED]:
        details.append(f"The noise between seeds rejects Equation 8 as it stands on {joined(rejected)} (lack of fit).")
    D1, D2 = grids[0].D1, grids[0].D2[-1]
    gains = ", ".join(f"{gain_of_D1(grid)} on {text_of(grid)}" for grid in grids)
    details.append(
        "The paper also reports that more dense training helps longer on Japanese, and less long on code; here, from "
        f"D1 = {short_count(D1[0])} to {short_count(D1[-1])}, the loss at D2 = {short_count(D2)} changes by {gains}."
    )
    return Observation(
        "losses on Japanese and on code follow the law in D1 and D2 as those on English web text do.",
        Finding(f"{first}.", " ".join(details), _together(verdicts)),
    )


def _best_is_multiplicative(inputs: Inputs, grid: Grid) -> Verdict:
    """Whether the multiplicative law with interaction clearly has the lowest leave-one-out error of those fitted."""
    errors = law_errors(inputs, grid)
    if len(errors) < 2:
        return "open"
    best, second = sorted(errors, key=errors.__getitem__)[:2]
    ratio = inputs.error_ratio(inputs.fit(grid, second), inputs.fit(grid, best))
    if ratio is None or not ratio.clear:
        return "open"
    return "clear" if best == "multiplicative" else "against"


def gain_of_D1(grid: Grid) -> Difference:
    """How the loss at the most upcycling tokens changes from the fewest dense tokens to the most."""
    tables = {
        D2: rows.pivot_table(index="seed", columns="D1", values="loss").reindex(columns=grid.D1)
        for D2, rows in grid.rows.groupby("D2")
    }
    last = tables[grid.D2[-1]]
    return mean_difference([(last[grid.D1[-1]] - last[grid.D1[0]]).dropna().tolist()], residual_noise(tables.values()))


# Section 3.1, Table 5: tuning of learning rates


@dataclass(frozen=True)
class Tuned:
    """Losses of one size, dense or mixture, by maximum learning rate."""

    mixture: str
    """The study's name of it; empty for the dense model."""
    model: str
    table: pd.DataFrame
    """Losses [seeds, rates], rates ascending."""
    differences: dict[float, Difference]
    """Of each rate to the best."""
    used: float | None
    """The rate of the study's other models of this shape; None where there is none, or more than one."""

    @property
    def means(self) -> dict[float, float]:
        """Mean loss over seeds by rate, ascending."""
        return dict(zip(map(float, self.table.columns.tolist()), self.table.mean().tolist(), strict=True))

    @property
    def best(self) -> float:
        """The rate of the lowest mean loss."""
        return min(self.means, key=self.means.__getitem__)

    @property
    def within(self) -> list[float]:
        """Rates that are not clearly worse than the best, ascending, itself included."""
        return [rate for rate in self.means if rate == self.best or not self.differences[rate].clear]

    @property
    def at_edge(self) -> bool:
        """Whether the best is the smallest or largest rate that was tried."""
        return self.best in (min(self.means), max(self.means))

    def __str__(self) -> str:
        notes = []
        if len(self.within) > 1:
            known = self.differences[self.within[0] if self.within[0] != self.best else self.within[-1]].error
            span = f"{short(self.within[0])} to {short(self.within[-1])}"
            notes.append("one seed" if known is None else f"{span} within noise")
        notes += ["at the edge of those tried"] if self.at_edge else []
        return f"{short(self.best)} for {self.model}" + (f" ({', '.join(notes)})" if notes else "")


def tuning(inputs: Inputs, sweeps: Sequence[str]) -> list[Tuned]:
    """Each size of the sweeps, dense models first, smallest first.

    Raises `UserError` where a size has one rate alone.
    """
    rows = rows_of(inputs, sweeps)
    tables = {
        (str(moe), str(model)): group.pivot_table(index="seed", columns="lr", values="loss")
        for (moe, _, model), group in rows.groupby(["moe", "N1", "model"])
    }
    for (_, model), table in tables.items():
        if len(table.columns) < 2:
            raise UserError(
                f"{named(sweeps)}: model `{model}` has one learning rate alone; name a sweep over `optim.lr`"
            )
    # Far from the best a loss varies more from seed to seed: the noise is that of the best rate and those next to it.
    noise = residual_noise(_about_best(table) for table in tables.values())
    others = inputs.losses[~inputs.losses["id"].isin(set(rows["id"])) & (inputs.losses["schedule"] == "wsd")]
    found = []
    for (moe, model), table in tables.items():
        best = table.mean().idxmin()
        differences = {
            float(rate): mean_difference(
                [(table[rate] - table[best]).dropna().tolist()], noise, among=len(table.columns) - 1
            )
            for rate in table.columns
        }
        elsewhere = others.loc[(others["model"] == model) & (others["moe"] == moe), "lr"].mode()
        used = float(elsewhere.iloc[0]) if len(elsewhere) == 1 else None
        found.append(Tuned(moe, model, table, differences, used))
    return found


def _about_best(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of the best rate and of those next to it."""
    place = int(table.mean().to_numpy().argmin())
    return table[list(table.columns)[max(place - 1, 0) : place + 2]]


def see_tuning(inputs: Inputs, sweeps: Sequence[str]) -> Observation:
    """Section 3.1 in words."""
    found = tuning(inputs, sweeps)
    dense, mixtures = ([each for each in found if bool(each.mixture) is kind] for kind in (False, True))
    parts = [
        f"{'dense models' if kind is dense else 'mixtures'}: {', '.join(map(str, kind))}"
        for kind in (dense, mixtures)
        if kind
    ]
    sizes = {each.model: each for each in dense}
    details = []
    beside = [(sizes[each.model], each) for each in mixtures if each.model in sizes]
    for verdict, words in (
        ("clear", "clearly below"),
        ("against", "clearly above"),
        ("open", "not clearly different from"),
    ):
        if models := [of_mixture.model for of_dense, of_mixture in beside if _falls(of_dense, of_mixture) == verdict]:
            details.append(f"The mixture's best rate is {words} its dense model's for {joined(models)}.")
    for each in found:
        if each.used in each.differences and each.used != each.best:
            what = f"{each.model} {each.mixture}".strip()
            details.append(
                f"The study's rate for {what}, {short(each.used)}, changes its loss by {each.differences[each.used]}."
            )
    return Observation(
        "the maximum learning rate was tuned for each size: it falls with size, and that of a mixture is at most that "
        "of its dense model (Table 5).",
        Finding(
            f"The best of these maximum learning rates is, of {'; of '.join(parts)}.",
            " ".join(details),
            _together([_falls(first, second) for first, second in (*pairwise(dense), *pairwise(mixtures), *beside)]),
        ),
    )


def _falls(first: Tuned, second: Tuned) -> Verdict:
    """Whether the best rate of the second is below that of the first, beyond noise."""
    if second.within[-1] < first.within[0]:
        return "clear"
    return "against" if second.within[0] > first.within[-1] else "open"


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    """One verdict for several."""
    if "against" in verdicts:
        return "against"
    clear = verdicts.count("clear")
    return "open" if not clear else "clear" if clear == len(verdicts) else "part"
