"""Tables of what the laws of one grid say: their parameters, and where upcycling and training from scratch cross."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd

from upcycle.decisions.thresholds import Threshold, d_star, threshold_d2, threshold_flops
from upcycle.errors import UserError
from upcycle.laws.forms import get_law
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import with_interval
from upcycle.paper.tables_laws import fitted_to
from upcycle.paper.three_laws import three_laws


def parameters(inputs: Inputs, sweep: str | None = None) -> pd.DataFrame:
    """Parameters of the laws of the same losses, with four kinds of 95 % intervals.

    A row a parameter of each law that is fitted to all runs of the largest upcycled sweep (or of `sweep`). Intervals:
    bootstrap of the leave-one-out residuals; points drawn with replacement; the noise between seeds alone, which leaves
    out that the law may be wrong; profile likelihood, of E and the interaction. A dash as an end: up to there the
    losses do not bound the parameter; alone: there is no interval of that kind. Determined: whether the losses
    determine all parameters of the law.

    Raises `UserError` when no law is fitted to the sweep.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, fit in fitted_to(inputs, sweep).items():
        kinds = fit.certificate.get("intervals", {})
        for parameter, value in fit.values.items():
            profile = fit.certificate.get("profile", {}).get(parameter, {})
            of_kind = {
                "residuals drawn": fit.intervals.get(parameter),
                "points drawn": kinds.get("pair", {}).get(parameter),
                "noise of seeds": kinds.get("seed_noise", {}).get(parameter),
                "profile": profile.get("interval"),
            }
            cells = rows[f"{name}: {parameter}"] = {}
            for kind, ends in of_kind.items():
                cells |= with_interval(kind, value if ends else math.nan, ends)
            cells["determined"] = "yes" if fit.identifiable else "no"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("parameter")


def crossings(inputs: Inputs, sweep: str | None = None) -> pd.DataFrame:
    """Where upcycling and training from scratch give equal losses, by each upcycled law.

    A row a law that is fitted to all runs of the largest upcycled sweep (or of `sweep`), against the law of MoEs from
    scratch. D* in tokens (Equation 13): at D1 = D2, the dense model's cost sunk. D2 at the largest D1 of the sweep: the
    same tokens from scratch (cost sunk); the FLOPs of both stages from scratch (cost paid). Brackets: 95 % of the
    bootstrap draws that have a crossing within a factor of 10 of the data. None: share of the draws without one. Below:
    who is ahead below the crossing, or near the data where there is none.

    Raises `UserError` when no law is fitted to the sweep, or none to MoEs from scratch.
    """
    scratch = {name: fit for name, fit in inputs.fits.items() if get_law(fit.law).decides == "scratch"}
    rows: dict[str, dict[str, Any]] = {}
    for name, fit in fitted_to(inputs, sweep).items():
        if get_law(fit.law).decides != "upcycled":
            continue
        three = three_laws(replace(inputs, fits={**scratch, name: fit}))
        three.need("moe")
        own = inputs.rows_of(fit)
        size, d1 = float(own["N1"].max()), float(own["D1"].max())
        rows[name] = {
            **_cells("D*", d_star(three, size)),
            **_cells("D2, cost sunk", threshold_d2(three, size, d1)),
            **_cells("D2, cost paid", threshold_flops(three, size, d1)),
        }
    if not rows:
        raise UserError("table crossings: no fit to the upcycled sweep is of a law in D1 and D2; add `multiplicative`")
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("tokens of equal losses")


def _cells(column: str, crossing: Threshold) -> dict[str, Any]:
    root = crossing.root
    below = crossing.ahead(root * 0.999) if root is not None else crossing.below
    return {
        **with_interval(column, math.nan if root is None else root, crossing.band),
        f"{column}: none": crossing.shares.get("none", math.nan),
        f"{column}: below": {"upcycle": "upcycling", "scratch": "scratch"}[below],
    }
