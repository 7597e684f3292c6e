"""The losses as tables: the grid of D1 and D2, what was trained from scratch, and every model one by one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from upcycle.errors import UserError
from upcycle.paper.comparisons import clear_difference, leads
from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.render import signed
from upcycle.report.background import Background, read_csv
from upcycle.study.spec import short_count

EVALUATIONS = ("id", "evaluation", "loss", "loss_se", "heldout_tokens")
"""Columns of evaluations.csv."""


@dataclass(frozen=True)
class Cell:
    """A number of a heat table."""

    text: str
    heat: int = 0
    """Strength of its colour, 0 to 100."""
    tone: str = ""
    """`low` or `ahead`: good; `behind`: bad; `` : no colour."""
    note: str = ""
    """What a pointer held over it shows."""


def grid_tables(inputs: Inputs, grid: Grid) -> dict[str, Any]:
    """Mean losses by D1 and D2 with the rows trained from scratch, and the lead of upcycling, as heat tables."""
    rows = []
    for lineage, name in (("dense", "dense from scratch"), ("moe", "MoE from scratch")):
        found = inputs.baseline(grid, lineage)
        if not found.empty:
            rows.append((name, _by(found, "D")))
    for D1 in grid.D1:
        chosen = grid.rows[grid.rows["D1"] == D1]
        rows.append((f"upcycled, D1 = {short_count(D1)}", _by(chosen, "D2")))
    rivals = inputs.rivals(grid)
    for each in rivals:
        rows.append((f"dense, trained on, D1 = {short_count(each.d1)}", _by(each.continued.rows, "D2")))
    columns = sorted({tokens for _, cells in rows for tokens in cells})
    means = [group["loss"].mean() for _, cells in rows for group in cells.values()]
    low, high = min(means), max(means)
    body = [(name, [_loss_cell(cells.get(column), low, high) for column in columns]) for name, cells in rows]
    errors = inputs.losses["loss_se"]
    return {
        "mixture": f"{grid.model}, {grid.shape[0]} experts, {grid.shape[1]} active",
        "columns": [short_count(column) for column in columns],
        "rows": body,
        "seeds": any(len(group) > 1 for _, cells in rows for group in cells.values()),
        "scratch": len(rows) > len(grid.D1) + len(rivals),
        "parents": [each.parent_loss for each in rivals if each.imported and each.parent_loss is not None],
        "error": (float(errors.min()), float(errors.max())),
        "lead": _lead_table(inputs, grid),
        "lead_columns": [short_count(D2) for D2 in grid.D2],
    }


def _by(rows: pd.DataFrame, column: str) -> dict[int, pd.DataFrame]:
    """Rows by the value of a column of token counts."""
    return {int(tokens): rows[rows[column] == tokens] for tokens in rows[column].unique()}


def _loss_cell(group: pd.DataFrame | None, low: float, high: float) -> Cell:
    if group is None:
        return Cell("–")
    loss = float(group["loss"].mean())
    seeds = ", ".join(f"{_seed(row)}{row.loss:.4f}{_error(row)}" for row in group.itertuples())
    return Cell(f"{loss:.3f}", round(100 * (high - loss) / (high - low or 1)), "low", seeds)


def _seed(row: Any) -> str:
    """The seed that is written before a loss; an imported one may have none."""
    return "" if math.isnan(row.seed) else f"seed {int(row.seed)}: "


def _error(row: Any) -> str:
    """The standard error that is written behind a loss; a simulated one has none, an imported one perhaps."""
    return "" if math.isnan(row.loss_se) else f" ± {row.loss_se:.4f}"


def _lead_table(inputs: Inputs, grid: Grid) -> list[tuple[str, list[Cell]]]:
    """Lead over training from scratch on D2 tokens, by D1 and D2; empty where there is nothing to compare with."""
    found = {(lead.D1, lead.D2): lead.nats for lead in leads(inputs, grid)}
    if not found:
        return []
    bound = clear_difference(inputs.noise) if inputs.noise else math.nan
    largest = max(abs(value) for value in found.values()) or 1.0

    def cell(D1: int, D2: int) -> Cell:
        if (D1, D2) not in found:
            return Cell("–")
        value = found[D1, D2]
        text = signed(value)
        if abs(value) <= bound:
            return Cell(f"({text})", note="within the noise between seeds")
        # The root lets small leads show a colour beside large ones.
        return Cell(text, round(100 * math.sqrt(abs(value) / largest)), "ahead" if value > 0 else "behind")

    return [(f"D1 = {short_count(D1)}", [cell(D1, D2) for D2 in grid.D2]) for D1 in grid.D1]


def evaluations(inputs: Inputs, background: Background) -> list[dict[str, Any]]:
    """Held-out losses on other texts beside the run's own, by text; empty where the study evaluates none.

    Raises `UserError` for an evaluation of a run that losses.csv does not have.
    """
    path = background.out / "evaluations.csv"
    if not path.exists():
        return []
    own = inputs.losses.set_index("id")
    tables = []
    for name, group in read_csv(path, EVALUATIONS).groupby("evaluation", sort=False):
        if missing := set(group["id"]) - set(own.index):
            raise UserError(f"{path} holds run {min(missing)}, which losses.csv does not; build it again")
        pairs = group.join(own[["loss"]].rename(columns={"loss": "own"}), on="id")
        tables.append(
            {
                "name": name,
                "models": len(pairs),
                "correlation": float(pairs["loss"].corr(pairs["own"])) if len(pairs) > 2 else math.nan,
                "gap": signed(float((pairs["loss"] - pairs["own"]).mean())),
                "best": float(pairs["loss"].min()),
                "worst": float(pairs["loss"].max()),
                "tokens": int(pairs["heldout_tokens"].max()),
            }
        )
    return tables
