"""Table of the three joint laws: dense models, MoEs from scratch, upcycled models."""

from __future__ import annotations

import pandas as pd

from upcycle.errors import UserError
from upcycle.laws.result import FitResult
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import with_interval

COLUMNS = {"A": "A", "B": "B", "alpha": "α, α1", "alpha1": "α, α1"}
COLUMNS |= {"alpha2": "α2", "alpha3": "α3", "beta": "β", "E": "E"}
"""Parameters of Equations 3 and 12 as the paper's table heads them."""
LINEAGES = {"dense": "dense", "moe": "MoE", "up": "upcycled"}
"""Kinds of training in few letters."""


def table_2(inputs: Inputs) -> pd.DataFrame:
    """Table 2. Parameters of the joint laws.

    Equation 3 for dense models and for MoEs trained from scratch (in N1, the dense model's size), Equation 12 for
    upcycled models. Brackets: 95 % intervals. The first two laws are fitted together with one E. The third holds that E
    where its E has no interval. D in tokens, sizes in parameters, losses in nats.

    Raises `UserError` when one of the laws is not fitted.
    """
    rows = [_row(fit) for fit in _laws(inputs)]
    columns = [f"{column}{end}" for column in dict.fromkeys(COLUMNS.values()) for end in ("", " low", " high")]
    return pd.DataFrame(rows, columns=columns, index=pd.Index(LINEAGES.values(), name="law"), dtype=float)


def _laws(inputs: Inputs) -> list[FitResult]:
    """The three fits in the order of `LINEAGES`."""
    fits = sorted((fit for fit in inputs.fits.values() if fit.law == "chinchilla"), key=lambda fit: fit.n)
    grouped = [fit for fit in fits if fit.by == "lineage"]
    # Of several fits the one to most losses comes last, and counts.
    found = grouped[-1].group_fits if grouped else {fit.lineage: fit for fit in fits if fit.by is None}
    for lineage in ("dense", "moe"):
        if lineage not in found:
            raise UserError(
                f"no fit of law `chinchilla` to {'dense models' if lineage == 'dense' else 'MoEs from scratch'}: "
                "add one with `by: lineage` and `shared: [E]` under `fits` in the study"
            )
    return [found["dense"], found["moe"], inputs.fit_of("joint")]


def _row(fit: FitResult) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, value in fit.values.items():
        row |= with_interval(COLUMNS[name], value, fit.intervals.get(name))
    return row
