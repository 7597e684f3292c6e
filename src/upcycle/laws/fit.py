"""Fit a law to losses: the entry for code (`fit`) and for the command line (`run_fit`).

Sum of Huber losses (delta = 1e-3) of the residuals of the log loss, as the paper; many starts; exact derivatives. This
module knows no law by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from upcycle.errors import UserError
from upcycle.laws.certificate.seeds import errors_by_seeds, seed_draws
from upcycle.laws.certificate.validate import seed_noise
from upcycle.laws.context import check_one_method, with_context
from upcycle.laws.describe import BOOTSTRAP, Selection, describe, solve
from upcycle.laws.forms import get_law
from upcycle.laws.grouped import fit_by
from upcycle.laws.law import Law
from upcycle.laws.result import FitResult, write_fit
from upcycle.laws.solver.prepare import prepare
from upcycle.laws.tables.losses import law_columns, read_losses, selection_words
from upcycle.laws.tables.losses import select_losses as select_rows
from upcycle.laws.tables.mixed_kernels import warned
from upcycle.laws.terms import Array

DRAWS = 200
"""Bootstrap draws of each kind of interval, unless a caller says otherwise."""


def fit(
    law: Law,
    data: Mapping[str, Any],
    *,
    ids: Sequence[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    floor: FitResult | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    noise: float | None = None,
    repeats: Mapping[str, Array] | None = None,
    selection: str = "",
    simulated: bool = False,
) -> FitResult:
    """Fit a law to columns of inputs and its response [N].

    `floor`: an earlier fit whose E is held here (section 5); each draw holds the E of that fit's draw. `noise`:
    measured standard deviation of a loss between seeds, in nats, for intervals from it alone. `repeats`: losses of each
    run in draws of other seeds (`seed_draws`), by id: the certificate then has `loo_rms_by_seeds`, an error a draw.
    Raises `UserError` for unknown parameters, missing columns and values that the law cannot take.
    """
    chosen = Selection.of(law, data, ids, words=selection, simulated=simulated)
    held = dict(fixed or {}) | ({} if floor is None else {"E": floor.values["E"]})
    prepared = prepare(law, chosen.data, held)
    floors = None if floor is None or floor.draws is None else np.array(floor.draws["E"])[:draws]
    count = draws if floors is None else len(floors)
    fitted = solve(prepared, draws=count, seed=seed, floor_draws_B=floors, noise=noise)
    result = describe(fitted, chosen, interval_method=f"{BOOTSTRAP}, {draws} draws, seed {seed}")
    if repeats and fitted.loo and len(fitted.loo.refits.phi_SR) == result.n:  # else folds of many points were left out
        loss_BN = np.array([repeats[run_id] for run_id in chosen.ids]).T
        by_seeds = errors_by_seeds(prepared, fitted.loo.refits, loss_BN).tolist()
        result = replace(result, certificate={**result.certificate, "loo_rms_by_seeds": by_seeds})
    if floor is None:
        return result
    joint = None if result.draws is None or floors is None else {**result.draws, "E": floors.tolist()}
    return replace(result, floor=floor.to_json(), draws=joint)


def fit_floor(data: Mapping[str, Any], *, ids: Sequence[str] | None = None, **about: Any) -> FitResult:
    """The first step of section 5: Equation 3 to dense models and MoEs from scratch (column `lineage`), one E for both.

    Raises `UserError` as `fit` does, and for rows of another lineage.
    """
    found = sorted(set(np.asarray(data["lineage"]).tolist()))
    if found != ["dense", "moe"]:
        raise UserError(
            f"E comes from dense models and MoEs from scratch together; these rows are of {', '.join(found)}"
        )
    return fit_by(get_law("chinchilla"), data, by="lineage", shared=["E"], ids=ids, draws=DRAWS, **about)


def run_fit(
    losses_csv: Path,
    *,
    law: str,
    select: Mapping[str, Any] | None = None,
    fixed: Mapping[str, float] | None = None,
    floor_from: Sequence[str] = (),
    by: str | None = None,
    shared: Sequence[str] = (),
    out: Path,
) -> dict[str, Any]:
    """Fit a law to a selection (`sweep`: names, `where`: expression) of losses.csv and write `out`; return its content.

    `floor_from`: sweeps of dense models and MoEs from scratch that E is fitted to first. Raises `UserError` for an
    unknown law, parameter or sweep, a bad expression, or an empty selection.
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
    rows, about = _selected(losses, losses_csv, select.get("sweep"), select.get("where", ""))
    check_one_method(rows, by, form.inputs)
    data = law_columns(rows, [*form.inputs, form.response, *([by] if by else [])])
    used = [rows]
    if by is not None:
        result = fit_by(form, data, by=by, shared=shared, fixed=fixed, draws=DRAWS, **about)
    else:
        floor = None
        if floor_from:
            first, first_about = _selected(losses, losses_csv, floor_from, "")
            used.append(first)
            floor = fit_floor(law_columns(first, ["D", "N", "loss", "lineage"]), **first_about)
        result = fit(form, data, fixed=fixed, floor=floor, repeats=seed_draws(rows, losses), **about)
    result = warned(with_context(result, rows), pd.concat(used))
    write_fit(result, out)
    return result.to_json()


def _selected(
    losses: pd.DataFrame, losses_csv: Path, sweep: str | Sequence[str] | None, where: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Rows of a selection, and what a fit says of them."""
    rows = select_rows(losses, sweep=sweep, where=where)
    missing = rows["loss"].isna()
    if missing.any():
        raise UserError(
            f"{losses_csv}: run {rows.loc[missing, 'id'].iloc[0]} has no loss; select finished models with `where`"
        )
    noise = seed_noise(losses)
    return rows, {
        "ids": rows["id"].tolist(),
        "selection": selection_words(sweep, where),
        "simulated": bool(rows["simulated"].any()),
        "noise": noise.deviation if noise else None,
    }
