"""Tables of the laws in D1 and D2 at fixed sizes; one column (or three, with an interval) for each mixture."""

from __future__ import annotations

import pandas as pd

from upcycle.errors import UserError
from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.render import or_nan, with_interval

LAWS = {
    "multiplicative": "multiplicative law with interaction",
    "multiplicative_no_interaction": "multiplicative law without interaction",
    "additive": "additive law with interaction",
    "additive_no_interaction": "additive law without interaction",
}
"""The laws that Table 1 compares, as sentences name them."""
ROWS = {
    "multiplicative": "mult.",
    "multiplicative_no_interaction": "mult., α3 = 0",
    "additive": "add.",
    "additive_no_interaction": "add., α3 = 0",
}
"""The same as the paper's table heads its rows."""
_EXPONENTS = {"alpha1": "α1", "alpha2": "α2", "alpha3": "α3"}


def table_1(inputs: Inputs, sweep: str | None = None) -> pd.DataFrame:
    """Table 1. Leave-one-out error of the laws in D1 and D2.

    Root mean square error in nats of predicting each loss from a fit to all others, for each mixture (experts, active
    experts). Lower is better. All laws of a column are fitted to the same losses.

    Raises `UserError` when a law is not fitted, or to other losses than the rest.
    """
    columns = {}
    for grid in inputs.grids(sweep):
        errors = law_errors(inputs, grid)
        if missing := [law for law in LAWS if law not in errors]:
            inputs.fit(grid, missing[0])  # says what to add
        columns[_heading(inputs, grid, sweep)] = [errors[law] for law in LAWS]
    return pd.DataFrame(columns, index=pd.Index(ROWS.values(), name="leave-one-out RMS (nats)"))


def table_8(inputs: Inputs, sweep: str | None = None) -> pd.DataFrame:
    """Table 8. Exponents of the multiplicative law across mixtures.

    Exponents of Equation 8 with interaction, for each mixture (experts, active experts). Brackets: 95 % intervals.
    """
    fits = {_heading(inputs, grid, sweep): inputs.fit(grid, "multiplicative") for grid in inputs.grids(sweep)}
    rows = [
        {
            column: value
            for heading, fit in fits.items()
            for column, value in with_interval(heading, fit.values[name], fit.intervals.get(name)).items()
        }
        for name in _EXPONENTS
    ]
    return pd.DataFrame(rows, index=pd.Index(_EXPONENTS.values(), name="exponent"))


def law_errors(inputs: Inputs, grid: Grid) -> dict[str, float]:
    """Leave-one-out RMS in nats by law, of those that are fitted to a grid; NaN for too few points.

    Raises `UserError` when two of them are fitted to different runs: their errors then do not compare.
    """
    fits = {law: fit for law in LAWS if (fit := inputs.fit_or_none(grid, law)) is not None}
    selections = {frozenset(fit.ids) for fit in fits.values()}
    if len(selections) > 1:
        raise UserError(
            f"the fits of {', '.join(fits)} to sweep `{grid.sweep}` take different runs, their errors do not compare: "
            "give them the same `sweep` and `where` in the study"
        )
    return {law: or_nan(fit.loo_rms) for law, fit in fits.items()}


def _heading(inputs: Inputs, grid: Grid, sweep: str | None) -> str:
    """`(8,2)`, with the model's name before it where the sweep has several."""
    several = len({other.model for other in inputs.grids(sweep)}) > 1
    return f"{grid.model} {grid.label}" if several else grid.label
