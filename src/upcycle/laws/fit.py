"""Fit a law to losses: the entry for code (`fit`) and for the command line (`run_fit`).

Sum of Huber losses (delta = 1e-3) of the residuals of the log loss, as the paper; many starts; exact derivatives. This
module knows no law by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from upcycle.errors import UserError
from upcycle.laws.describe import BOOTSTRAP, Selection, describe, solve
from upcycle.laws.forms import get_law
from upcycle.laws.grouped import fit_by
from upcycle.laws.law import Law
from upcycle.laws.losses import read_losses, selection_words
from upcycle.laws.losses import select as select_rows
from upcycle.laws.prepare import prepare
from upcycle.laws.result import FitResult, write_fit
from upcycle.laws.terms import Array

DRAWS = 200
COMPARED = ("law", "loo_rms", "loo_rms_log", "rms", "n", "identifiable", "statement")
"""What a comparison of laws shows of each."""


def fit(
    law: Law,
    data: Mapping[str, Any],
    *,
    ids: Sequence[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    selection: str = "",
    simulated: bool = False,
) -> FitResult:
    """Fit a law to columns of inputs and its response [N].

    Raises `UserError` for unknown parameters, missing columns and values that the law cannot take.
    """
    chosen = Selection.of(law, data, ids, words=selection, simulated=simulated)
    prepared = prepare(law, chosen.data, fixed or {})
    return describe(
        solve(prepared, draws=draws, seed=seed), chosen, interval_method=f"{BOOTSTRAP}, {draws} draws, seed {seed}"
    )


def compare(
    laws: Sequence[Law], data: Mapping[str, Any], *, ids: Sequence[str] | None = None, draws: int = DRAWS
) -> pd.DataFrame:
    """Leave-one-out RMS of several laws on the same points, a row a law (Table 1 has one such column a mixture)."""
    rows = []
    for law in laws:
        result = fit(law, data, ids=ids, draws=draws)
        rows.append({column: getattr(result, column) for column in COMPARED})
    return pd.DataFrame(rows).set_index("law")


def run_fit(
    losses_csv: Path,
    *,
    law: str,
    select: Mapping[str, Any] | None = None,
    fixed: Mapping[str, float] | None = None,
    by: str | None = None,
    shared: Sequence[str] = (),
    out: Path,
) -> dict[str, Any]:
    """Fit a law to a selection (`sweep`: names, `where`: expression) of losses.csv and write `out`; return its content.

    Raises `UserError` for an unknown law, parameter or sweep, a bad expression, or an empty selection.
    """
    form = get_law(law)
    if shared and by is None:
        raise UserError(f"shared {list(shared)} without `by`: without groups every parameter is shared")
    if form.source is not None:
        raise UserError(
            f"law `{law}` is fitted to the parameters of law `{form.source.law}`: fit that, with `by: {form.inputs[0]}`"
        )
    losses = read_losses(losses_csv)
    select = select or {}
    rows = select_rows(losses, sweep=select.get("sweep"), where=select.get("where", ""))
    words = selection_words(select.get("sweep"), select.get("where", ""))
    missing = rows["loss"].isna()
    if missing.any():
        raise UserError(
            f"{losses_csv}: run {rows.loc[missing, 'id'].iloc[0]} has no loss; select finished models with `where`"
        )
    data: dict[str, Array] = {
        name: rows[name].to_numpy(float) for name in rows.columns if name in (*form.inputs, form.response, by)
    }
    about: dict[str, Any] = {
        "ids": rows["id"].tolist(),
        "fixed": fixed,
        "selection": words,
        "simulated": bool(rows["simulated"].any()),
    }
    result = fit(form, data, **about) if by is None else fit_by(form, data, by=by, shared=shared, draws=DRAWS, **about)
    write_fit(result, out)
    return result.to_json()
