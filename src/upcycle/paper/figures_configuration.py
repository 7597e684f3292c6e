"""Figures of the law in sparsity and active size at fixed D1 and D2 (Equation 11)."""

from __future__ import annotations

from itertools import cycle

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from upcycle.laws.forms import get_law
from upcycle.paper import style
from upcycle.paper.inputs import Inputs
from upcycle.paper.predictions import predicted, rms, round_ticks, square
from upcycle.paper.render import number
from upcycle.study.spec import short_count


def figure_5(inputs: Inputs) -> Figure:
    """Figure 5. Predicted against measured loss by configuration.

    Left: losses that Equation 11 predicts from sparsity P and active size N2, against the measured ones; on the line
    both agree. Light to dark: growing dense size N1; markers: experts that a token uses. Right: errors, predicted minus
    measured loss, of leave-one-out predictions: each point by the law fitted to all others.
    """
    fit = inputs.fit_of("configuration")
    rows = inputs.rows_of(fit)
    figure = style.new_figure(style.PAGE, 3.1, mark=inputs.mark)
    left, right = figure.subplots(1, 2)
    values = predicted(fit, rows)
    errors = None if fit.loo_residuals_log is None else rows["loss"] * np.expm1(fit.loo_residuals_log)
    sizes, uses = sorted(rows["N1"].unique()), sorted(rows["top_k"].unique())
    colours = dict(zip(sizes, style.sequence(len(sizes)), strict=True))
    markers = dict(zip(uses, cycle(style.MARKERS), strict=False))
    square(left, rows["loss"].tolist(), values.tolist())
    right.axhline(0, color=style.GREY, linewidth=0.8)
    for size, colour in colours.items():
        for top_k, marker in markers.items():
            here = ((rows["N1"] == size) & (rows["top_k"] == top_k)).to_numpy()
            if here.any():
                style.points(left, rows["loss"][here], values[here], colour, marker)
                if errors is not None:
                    style.points(right, rows["loss"][here], errors[here], colour, marker)
    left.set_title(f"fitted, RMS {number(rms(values - rows['loss'].to_numpy()), 2)} nats", loc="left")
    if errors is not None:
        right.set_title(f"leave-one-out, RMS {number(rms(errors.to_numpy()), 2)} nats", loc="left")
    right.set_xlim(left.get_xlim())
    right.xaxis.set_major_locator(round_ticks())
    right.set_xlabel("measured loss (nats per token)")
    right.set_ylabel("predicted − measured (nats)")
    handles: list[Artist] = [Patch(color=c, label=f"$N_1$ = {short_count(size)}") for size, c in colours.items()]
    grey = {top_k: (style.GREY, marker) for top_k, marker in markers.items()}
    handles += style.look_handles(grey, lambda top_k: f"top-{top_k}", linestyle="none")
    style.legend_below(figure, handles, columns=8)
    return figure


def figure_13(inputs: Inputs) -> Figure:
    """Figure 13. Loss against active size at fixed sparsity.

    Loss of upcycled models, all with the same D1 and D2, against their active parameters N2. Panels: experts that a
    token uses (top-K). Light to dark: more experts. Curves: Equation 11 fitted to all points, each at the sparsity P of
    its mixture, listed above the panel in the order of the experts.
    """
    fit = inputs.fit_of("configuration")
    rows = inputs.rows_of(fit)
    P = (rows["N_total"] / rows["N2"]).to_numpy()
    uses, experts = sorted(rows["top_k"].unique()), sorted(rows["n_expert"].unique())
    figure = style.new_figure(max(style.PAGE * len(uses) / 3, style.COLUMN), 2.6, mark=inputs.mark)
    panels = figure.subplots(1, len(uses), sharey=True, squeeze=False)[0]
    looks = style.looks(experts)
    for axes, top_k in zip(panels, uses, strict=True):
        here = rows[rows["top_k"] == top_k]
        line = np.geomspace(here["N2"].min(), here["N2"].max(), 100)
        shown = []
        for n_expert, (colour, marker) in looks.items():
            group = here[here["n_expert"] == n_expert].sort_values("N2")
            if group.empty:
                continue
            sparsity = float(P[group.index[0]])
            shown.append(f"{sparsity:.3g}")
            curve = get_law(fit.law).predict(fit.values, {"P": np.full_like(line, sparsity), "N2": line})
            axes.plot(line, curve, color=colour, linewidth=1)
            style.points(axes, group["N2"], group["loss"], colour, marker)
        style.token_axis(axes, sorted(here["N2"]), "active parameters, $N_2$", apart=0.2)
        axes.set_title(f"top-{top_k}\n$P$ = {', '.join(shown)}", loc="left")
    style.loss_axis(panels[0])
    style.legend_below(figure, style.look_handles(looks, str), "experts")
    return figure
