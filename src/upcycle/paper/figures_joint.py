"""Figures of the joint law in D1, D2 and N1 (Equation 12)."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from upcycle.errors import UserError
from upcycle.laws.forms import get_law
from upcycle.paper import style
from upcycle.paper.inputs import Inputs
from upcycle.paper.predictions import extrapolated, most_tokens, predicted, rms, rows_of_largest_size, square
from upcycle.paper.render import number
from upcycle.study.spec import short_count

LEAST_SIZES = 3
"""Sizes that a curve in N1 needs."""
MOST_CURVES = 6
"""More would not be told apart."""


def figure_6(inputs: Inputs) -> Figure:
    """Figure 6. Predicted against measured loss, the joint law.

    Losses of upcycled models that Equation 12 predicts, against the measured ones; on the line both agree. Light to
    dark: growing dense size N1. Left: the law fitted to all points. Other panels: predictions of losses that were left
    out of the fit: those of the largest D1 or D2 of each size, and of the largest size. Bottom: errors, predicted minus
    measured loss.

    Raises `UserError` when the joint law is not fitted.
    """
    fit = inputs.fit_of("joint")
    rows = inputs.rows_of(fit)
    everything = np.ones(len(rows), dtype=bool)
    candidates = [
        ("fitted to all", everything, predicted(fit, rows)),
        ("largest $D_1$ or $D_2$ held out", most_tokens(rows), extrapolated(fit, rows, most_tokens(rows))),
        ("largest $N_1$ held out", rows_of_largest_size(rows), extrapolated(fit, rows, rows_of_largest_size(rows))),
    ]
    panels = [(title, shown, values) for title, shown, values in candidates if values is not None]
    figure = style.new_figure(max(style.PAGE * len(panels) / 3, style.COLUMN), 4.2, mark=inputs.mark)
    grid = figure.subplots(2, len(panels), squeeze=False, sharex="col", sharey="row", height_ratios=[2, 1])
    looks = style.looks(sorted(rows["N1"].unique()))
    for (top, bottom), (title, shown, values) in zip(grid.T, panels, strict=True):
        part = rows[shown]
        errors = values - part["loss"].to_numpy()
        square(top, rows["loss"].tolist(), values.tolist())
        bottom.axhline(0, color=style.GREY, linewidth=0.8)
        for size, (colour, marker) in looks.items():
            here = (part["N1"] == size).to_numpy()
            style.points(top, part["loss"][here], values[here], colour, marker)
            style.points(bottom, part["loss"][here], errors[here], colour, marker)
        top.set_title(f"{title}\nRMS {number(rms(errors), 2)} nats", loc="left")
        top.set_xlabel("")
        bottom.set_xlabel("measured loss (nats per token)")
    for axes in grid[0, 1:]:
        axes.set_ylabel("")
    grid[1, 0].set_ylabel("error (nats)")
    style.legend_below(figure, style.look_handles(looks, short_count, linestyle="none"), "$N_1$", columns=8)
    return figure


def figure_14(inputs: Inputs) -> Figure:
    """Figure 14. Loss against the dense model's size.

    Loss of upcycled models against the dense model's size N1, at budgets that several sizes have in common. Curves: the
    joint law (Equation 12) fitted to all points. Light to dark: more tokens.

    Raises `UserError` when the joint law is not fitted, or no budgets are common to enough sizes.
    """
    fit = inputs.fit_of("joint")
    rows = inputs.rows_of(fit)
    figure = style.new_figure(style.COLUMN, 3.0, mark=inputs.mark)
    axes = figure.subplots()
    groups = _common_budgets(rows)
    handles = []
    for group, (colour, marker) in zip(groups, style.looks(range(len(groups))).values(), strict=True):
        D1, D2 = float(group["D1"].iloc[0]), float(group["D2"].iloc[0])
        line = np.geomspace(group["N1"].min(), group["N1"].max(), 100)
        data = {"D1": np.full_like(line, D1), "D2": np.full_like(line, D2), "N1": line}
        axes.plot(line, get_law(fit.law).predict(fit.values, data), color=colour, linewidth=1)
        style.points(axes, group["N1"], group["loss"], colour, marker)
        label = short_count(D1) if D1 == D2 else f"{short_count(D1)}, {short_count(D2)}"
        handles.append(Line2D([], [], color=colour, marker=marker, label=label))
    style.token_axis(axes, sorted(set(rows["N1"])), "parameters of the dense model, $N_1$", apart=0.13)
    style.loss_axis(axes)
    title = "$D_1 = D_2$ (tokens)" if all((g["D1"] == g["D2"]).all() for g in groups) else "$D_1$, $D_2$ (tokens)"
    axes.legend(handles=handles, title=title, loc="upper right", ncols=1 + (len(handles) > 3))
    return figure


def _common_budgets(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of one D1 and D2 each (to three digits), with several sizes; with D1 = D2 where there are such."""
    D1, D2 = rows["D1"].map(short_count), rows["D2"].map(short_count)
    groups = [group for _, group in rows.groupby([D1, D2]) if group["N1"].nunique() >= LEAST_SIZES]
    if not groups:
        raise UserError(f"no D1 and D2 are common to {LEAST_SIZES} sizes: the loss against N1 needs such budgets")
    equal = [group for group in groups if short_count(group["D1"].iloc[0]) == short_count(group["D2"].iloc[0])]
    chosen = sorted(equal or groups, key=lambda group: (group["D1"].iloc[0], group["D2"].iloc[0]))
    if len(chosen) > MOST_CURVES:
        chosen = [chosen[k] for k in np.linspace(0, len(chosen) - 1, MOST_CURVES).round().astype(int)]
    return chosen
