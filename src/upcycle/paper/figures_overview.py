"""Figures that the paper does not have: the whole sweep in one figure, and the residuals of each law."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from upcycle.errors import UserError
from upcycle.paper import style
from upcycle.paper.comparisons import clear_difference
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import number
from upcycle.paper.tables_data import ROWS
from upcycle.study.spec import short_count


def overview(inputs: Inputs, sweep: str | None = None) -> Figure:
    """Upcycling against training from scratch.

    Top: held-out loss of every finished model against the tokens of its last stage: D for training from scratch
    ("scratch" is the mixture), D2 for upcycling, a line for each D1, the tokens of the dense model. Bottom: loss of the
    same mixture trained
    from scratch on D2 tokens minus loss of the upcycled model; below zero, training from scratch wins. Grey band:
    differences within the noise between seeds (where seeds were repeated).
    """
    grid = inputs.grid(sweep)
    scratch = inputs.baseline(grid, "moe").groupby("D")["loss"].mean()
    panels = 1 if scratch.empty else 2
    figure = style.new_figure(style.COLUMN, 2.6 + 1.7 * (panels - 1), mark=inputs.mark)
    top, *rest = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=[1.5, 1][:panels])[:, 0]
    ends: list[tuple[str, float, style.Colour]] = []
    tokens = set(grid.D2)
    for lineage, colour, marker, label in (
        ("dense", style.DENSE, "x", "dense"),
        ("moe", style.SCRATCH, "*", "scratch"),
    ):
        line = inputs.baseline(grid, lineage).groupby("D")["loss"].mean()
        if not line.empty:
            top.plot(line.index, line, color=colour, marker=marker, ls="--", markersize=5)
            ends.append((label, line.iloc[-1], colour))
            tokens |= {int(value) for value in line.index}
    for D1, (shade, marker) in style.looks(grid.D1).items():
        line = grid.rows[grid.rows["D1"] == D1].groupby("D2")["loss"].mean()
        style.points(top, line.index, line, shade, marker, linestyle="-")
        ends.append((f"$D_1$ {short_count(D1)}", line.iloc[-1], shade))
        for axes in rest:
            lead = (scratch - line).dropna()
            style.points(axes, lead.index, lead, shade, marker, linestyle="-")
    style.loss_axis(top)
    style.name_ends(top, ends)
    for axes in rest:
        axes.axhline(0, color=style.SCRATCH, linestyle="--")
        if noise := inputs.noise:
            band = clear_difference(noise)
            axes.axhspan(-band, band, color=style.GREY, alpha=0.25, linewidth=0)
        axes.set_ylabel("lead of upcycling (nats)")
    label = "tokens from scratch $D$, or after upcycling $D_2$"
    style.token_axis((top, *rest)[-1], sorted(tokens), label)
    return figure


def residuals(inputs: Inputs, sweep: str | None = None) -> Figure:
    """Residuals of each law.

    Error of each law's leave-one-out prediction, prediction minus loss, against the tokens D2 of upcycled
    training. Light to dark: growing D1, the tokens of the dense model. A pattern shows what a law misses; scatter about
    zero is noise. Grey band: two standard deviations of the noise between seeds (where seeds were repeated).
    """
    grid = inputs.grid(sweep)
    figure = style.new_figure(style.COLUMN, 3.4, mark=inputs.mark)
    panels = figure.subplots(2, 2, sharex=True, sharey=True, gridspec_kw={"wspace": 0.12})
    rows = inputs.losses.set_index("id")
    for axes, (law, row) in zip(panels.flat, ROWS.items(), strict=True):
        fit = inputs.fit(grid, law)
        if fit.loo_residuals_log is None or fit.loo_rms is None:
            raise UserError(f"law `{law}` has no leave-one-out errors on sweep `{grid.sweep}`: {fit.statement}")
        points = rows.loc[fit.ids]
        errors = points["loss"] * np.expm1(fit.loo_residuals_log)
        if noise := inputs.noise:
            axes.axhspan(-2 * noise.deviation, 2 * noise.deviation, color=style.GREY, alpha=0.25, linewidth=0)
        axes.axhline(0, color=style.GREY, linewidth=0.7)
        handles = []
        for D1, (colour, marker) in style.looks(grid.D1).items():
            here = points["D1"] == D1
            handles += style.points(axes, points["D2"][here], errors[here], colour, marker, label=short_count(D1))
        axes.set_title(f"{row.replace('α3', '$α_3$')}\nRMS {number(fit.loo_rms, 2)} nats", loc="left")
    for axes in panels[1]:
        style.token_axis(axes, grid.D2, "$D_2$ (tokens)", apart=0.3)
    for axes in panels[:, 0]:
        axes.set_ylabel("error (nats)")
    style.legend_below(figure, handles, "$D_1$ (tokens)")
    return figure
