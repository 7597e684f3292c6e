"""Figures that the paper has not: the whole sweep in one panel, and what each law leaves unexplained."""

from __future__ import annotations

import math
from itertools import cycle

from matplotlib.figure import Figure

from upcycle.paper import style
from upcycle.paper.inputs import Inputs
from upcycle.paper.noise import seed_noise


def overview(inputs: Inputs, sweep: str | None = None) -> Figure:
    """Upcycling against training from scratch.

    Top: held-out loss of every finished model against the tokens of its last stage, D for training from scratch and
    D2 for upcycling; light to dark, upcycled from dense models that had seen more and more tokens D1. Bottom: by how
    much upcycling is ahead of the same mixture trained from scratch on as many tokens as upcycling added; below zero,
    training from scratch wins. The grey band is twice the seed noise of such a difference, where seeds were repeated.
    """
    grid = inputs.grid(sweep)
    scratch = inputs.baseline(grid, "moe").groupby("D")["loss"].mean()
    panels = 1 if scratch.empty else 2
    figure = style.new_figure(style.COLUMN, 2.6 + 1.7 * (panels - 1), simulated=inputs.simulated)
    top, *rest = figure.subplots(panels, 1, sharex=True, squeeze=False, height_ratios=[1.5, 1][:panels])[:, 0]
    handles = []
    tokens = set(grid.D2)
    for lineage, colour, marker, label in (
        ("dense", style.DENSE, "x", "dense from scratch"),
        ("moe", style.SCRATCH, "*", "MoE from scratch"),
    ):
        line = inputs.baseline(grid, lineage).groupby("D")["loss"].mean()
        if not line.empty:
            handles += top.plot(line.index, line, color=colour, marker=marker, ls="--", markersize=5, label=label)
            tokens |= {int(value) for value in line.index}
    for D1, colour, marker in zip(grid.D1, style.sequence(len(grid.D1)), cycle(style.MARKERS), strict=False):
        line = grid.rows[grid.rows["D1"] == D1].groupby("D2")["loss"].mean()
        style.points(top, line.index, line, colour, marker, line=True)
        for axes in rest:
            lead = (scratch - line).dropna()
            style.points(axes, lead.index, lead, colour, marker, line=True)
    style.loss_axis(top)
    style.sequence_legend(top, grid.D1, more=handles, title="upcycled, by $D_1$")
    for axes in rest:
        axes.axhline(0, color=style.SCRATCH, linestyle="--")
        if noise := seed_noise(inputs):
            band = 2 * math.sqrt(2) * noise.deviation
            axes.axhspan(-band, band, color=style.GREY, alpha=0.25, linewidth=0)
        axes.set_ylabel("lead of upcycling (nats)")
    label = "tokens from scratch $D$, or after upcycling $D_2$"
    style.token_axis((top, *rest)[-1], sorted(tokens), label)
    return figure
