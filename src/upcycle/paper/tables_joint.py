"""Table of the three joint laws: dense models, MoEs from scratch, upcycled models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from upcycle.errors import UserError
from upcycle.laws.result import FitResult
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import with_interval

COLUMNS = {
    "A": "A",
    "B": "B",
    "alpha": "α, α1",
    "alpha1": "α, α1",
    "alpha2": "α2",
    "alpha3": "α3",
    "beta": "β",
    "E": "E",
}
"""Parameters of Equations 3 and 12 as the paper's table heads them."""
ROWS = {"dense": "dense", "moe": "MoE", "up": "upcycled"}


def table_2(inputs: Inputs) -> pd.DataFrame:
    """Table 2. Parameters of the joint laws.

    Equation 3 for dense models and for MoEs trained from scratch (in N1, the dense model's size), Equation 12 for
    upcycled models. Brackets: 95 % intervals. The first two laws are fitted together with one E. The third holds that E
    where its E has no interval. D in tokens, sizes in parameters, losses in nats.

    Raises `UserError` when one of the laws is not fitted.
    """
    rows = [_row(laws["parameters"], laws["intervals"]) for laws in _laws(inputs).values()]
    columns = [f"{column}{end}" for column in dict.fromkeys(COLUMNS.values()) for end in ("", " low", " high")]
    return pd.DataFrame(rows, columns=columns, index=pd.Index(ROWS.values(), name="law"), dtype=float)


def _laws(inputs: Inputs) -> dict[str, Mapping[str, Any]]:
    """The content of the three fits by lineage."""
    grouped = [fit for fit in inputs.fits.values() if fit.law == "chinchilla" and fit.by == "lineage"]
    found: dict[str, Mapping[str, Any]] = {}
    if grouped:
        found = {str(group["lineage"]): group for group in max(grouped, key=lambda fit: fit.n).groups or []}
    else:
        single: list[FitResult] = [fit for fit in inputs.fits.values() if fit.law == "chinchilla" and fit.by is None]
        found = {str(fit.lineage): fit.to_json() for fit in sorted(single, key=lambda fit: fit.n)}
    for lineage in ("dense", "moe"):
        if lineage not in found:
            raise UserError(
                f"no fit of law `chinchilla` to {'dense models' if lineage == 'dense' else 'MoEs from scratch'}: "
                "add one with `by: lineage` and `shared: [E]` under `fits` in the study"
            )
    return {"dense": found["dense"], "moe": found["moe"], "up": inputs.fit_of("joint").to_json()}


def _row(parameters: Mapping[str, Any], intervals: Mapping[str, Any]) -> dict[str, float]:
    row: dict[str, float] = {}
    for name, entry in parameters.items():
        row |= with_interval(COLUMNS[name], entry["value"], intervals.get(name))
    return row
