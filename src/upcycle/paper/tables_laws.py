"""Every law that was fitted to the same upcycled losses, side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from upcycle.errors import UserError
from upcycle.laws.result import FitResult
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import or_nan, with_interval
from upcycle.paper.tables_data import LAWS

BY_SEEDS = "loo_rms_by_seeds"
"""Of a fit's certificate: leave-one-out errors in draws of the seeds."""


def laws(inputs: Inputs, sweep: str | None = None) -> pd.DataFrame:
    """Laws of the same losses compared.

    Error in nats of predicting losses that were left out of the fit: one at a time; all of one D1 or one D2 (the worse
    of the two); those of the largest D2. Ratio: the first error over that of the reference law, with 95 % intervals of
    a paired bootstrap over points, and over whole rows of D1; an interval that contains 1 does not separate the laws.
    Seeds drawn: the first error minus the reference law's, with a 95 % interval, and the share of the draws in which a
    law is the best of the paper's four; where a point has several seeds, a draw takes the loss of one of them. AIC:
    difference from the lowest. F: mean square of the residuals over the variance between seeds; a small p of fit
    rejects the law. p of no interaction: probability of an interaction as large if there were none (bootstrap).
    `warning`, where there is one, names what limits trust in a row; the report's section on laws has it in full.

    Without `sweep` of the largest one that laws are fitted to. Raises `UserError` when no law is fitted to the sweep.
    """
    found = fitted_to(inputs, sweep)
    # The paper's law is the reference; without its error, the best law is.
    reference = next(
        (name for name, fit in found.items() if fit.law == "multiplicative" and fit.loo_residuals_log is not None),
        min(found, key=lambda name: or_nan(found[name].loo_rms)),
    )
    rows = {name: _row(fit) | _against(inputs, fit, found[reference], reference) for name, fit in found.items()}
    for name, cells in _by_seeds(found, reference).items():
        rows[name] |= cells
    frame = pd.DataFrame.from_dict(rows, orient="index").sort_values("leave one out")
    lowest = frame["AIC"].min()
    frame["AIC"] = [value - lowest for value in frame["AIC"]]
    frame.index.name = "law"
    if any(fit.warnings for fit in found.values()):
        frame["warning"] = [", ".join(found[name].warnings) for name in frame.index]
    return frame


def fitted_to(inputs: Inputs, sweep: str | None) -> dict[str, FitResult]:
    """The fits to all runs of a sweep's largest grid, by name; None: of the first upcycled sweep that has any.

    Raises `UserError` when no law is fitted to the sweep.
    """
    for each in [sweep] if sweep else inputs.upcycled_sweeps():
        runs = set(inputs.grid(each).rows["id"])
        found = {
            name.replace("_", " "): fit
            for name, fit in inputs.fits.items()
            if fit.by is None and set(fit.ids) == runs and fit.response == "loss"
        }
        if found:
            return found
    which = f"sweep `{sweep}`" if sweep else "any upcycled sweep"
    raise UserError(f"no law is fitted to all runs of {which}: add one under `fits` in the study")


def _by_seeds(found: Mapping[str, FitResult], reference: str) -> dict[str, dict[str, Any]]:
    """By law, over draws of the seeds: its error minus the reference's, and the share in which it is the paper's best.

    Nothing where no run was repeated with another seed, or the reference has no such errors.
    """
    drawn = {name: np.array(errors) for name, fit in found.items() if (errors := fit.certificate.get(BY_SEEDS))}
    if reference not in drawn:
        return {}
    papers = [name for name in drawn if found[name].law in LAWS]
    best_B = np.array([drawn[name] for name in papers]).argmin(axis=0)
    cells: dict[str, dict[str, Any]] = {}
    for name, error_B in drawn.items():
        value = or_nan(found[name].loo_rms) - or_nan(found[reference].loo_rms)
        ends = np.quantile(error_B - drawn[reference], [0.025, 0.975]).tolist()
        best = float((best_B == papers.index(name)).mean()) if name in papers else math.nan
        cells[name] = {
            **with_interval(f"minus {reference}, seeds drawn", value, ends),
            "best of four, seeds drawn": best,
        }
    return cells


def _against(inputs: Inputs, fit: FitResult, reference: FitResult, name: str) -> dict[str, Any]:
    """The ratio of errors to the reference law's, and the test of lack of fit; NaN where they cannot be computed."""
    ratio, test = inputs.error_ratio(fit, reference), inputs.lack_of_fit(fit)
    value = ratio.ratio if ratio else math.nan
    return {
        **with_interval(f"ratio to {name}", value, ratio.by_points if ratio else None),
        **with_interval("ratio, rows drawn", value, ratio.by_groups if ratio else None),
        "F of fit": test.F if test else math.nan,
        "degrees of freedom": f"{test.freedom[0]}, {test.freedom[1]}" if test else "",
        "p of fit": test.p if test else math.nan,
    }


def _row(fit: FitResult) -> dict[str, Any]:
    folds = [entry["rms"] for entry in fit.certificate.get("folds", {}).values() if "rms" in entry]
    interaction = fit.certificate.get("interaction", {})
    return {
        "parameters": float(fit.certificate["parameters"]),
        "leave one out": or_nan(fit.loo_rms),
        "one budget out": max(folds, default=math.nan),
        "largest D2 out": or_nan(fit.certificate.get("extrapolation", {}).get("D2", {}).get("rms")),
        "AIC": or_nan(fit.certificate.get("aic")),
        "p of no interaction": or_nan(interaction.get("p_bootstrap")),
    }
