"""Figures of ablations that are grids: other texts, and learning rates of several sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from upcycle.laws.forms import get_law
from upcycle.paper import style
from upcycle.paper.ablation_grids import Tuned, text_of, tuning
from upcycle.paper.ablations import short
from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.render import number
from upcycle.paper.tables_data import ROWS, law_errors
from upcycle.study.spec import short_count


def figure_11(inputs: Inputs, sweeps: Sequence[str] = ("japanese", "code"), model: str | None = None) -> Figure:
    """Figure 11. Loss against D1 and D2 on other texts.

    Top: loss of finished upcycled models against their tokens D2, one colour for each D1, on each text; lines: Equation
    8. Bottom: leave-one-out errors of the laws that were fitted, as in Table 1. Losses on different texts do not
    compare: other tokenizers and other held-out text.

    Raises `UserError` for a sweep without upcycled models, and without a fit of Equation 8.
    """
    grids = [inputs.grid(name, model) for name in sweeps]
    figure = style.new_figure(max(style.PAGE * len(grids) / 3, style.COLUMN), 3.6, mark=inputs.mark)
    tops, bottoms = figure.subplots(2, len(grids), height_ratios=[2.6, 1], squeeze=False)
    for top, bottom, grid in zip(tops, bottoms, grids, strict=True):
        top.set_title(text_of(grid))
        _grid_by_D1(top, inputs, grid)
        _errors(bottom, inputs, grid)
    for axes in tops[1:]:
        axes.set_ylabel("")
    for axes in bottoms[1:]:
        axes.set_yticklabels([])
    return figure


def _grid_by_D1(axes: Axes, inputs: Inputs, grid: Grid) -> None:
    """Losses against D2, a colour for each D1, with Equation 8, each line named at its end."""
    fit, law = inputs.fit(grid, "multiplicative"), get_law("multiplicative")
    D2 = np.geomspace(grid.D2[0], grid.D2[-1], 60)
    ends = []
    for D1, (colour, marker) in style.looks(grid.D1).items():
        rows = grid.rows[grid.rows["D1"] == D1]
        line = law.predict(fit.values, {"D1": np.full_like(D2, D1), "D2": D2})
        axes.plot(D2, line, color=colour, linewidth=1)
        style.points(axes, rows["D2"], rows["loss"], colour, marker)
        ends.append((short_count(D1), float(line[-1]), colour))
    style.token_axis(axes, grid.D2, "tokens, $D_2$", apart=0.26)
    style.loss_axis(axes)
    style.name_ends(axes, ends, title="$D_1$")


def _errors(axes: Axes, inputs: Inputs, grid: Grid) -> None:
    """Leave-one-out errors of the fitted laws, a bar each."""
    errors = law_errors(inputs, grid)
    places = np.arange(len(errors))[::-1]
    axes.hlines(places, 0, list(errors.values()), color=style.FIT, linewidth=3)
    for place, error in zip(places, errors.values(), strict=True):
        axes.annotate(number(error, 2), (error, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(places, [ROWS[law] for law in errors])
    axes.set(ylim=(-0.6, len(errors) - 0.4), xlim=(0, 1.3 * max(errors.values())), xlabel="leave-one-out RMS (nats)")
    axes.grid(axis="y", visible=False)


def learning_rates(inputs: Inputs, sweeps: Sequence[str] = ("lr_dense", "lr_moe")) -> Figure:
    """Final loss against the maximum learning rate.

    Each size of the dense model, and of its mixture (Section 3.1, Table 5). Small markers: single seeds; lines: means.
    Rings: the best rate of those tried. Ticks below a line: the rate that the study's other models of this kind have.

    Raises `UserError` for a sweep without finished models, and for a size with one rate alone.
    """
    found = tuning(inputs, sweeps)
    kinds = [kind for kind in (False, True) if any(bool(each.mixture) is kind for each in found)]
    figure = style.new_figure(style.PAGE if len(kinds) > 1 else style.COLUMN, 2.8, mark=inputs.mark)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    models = list(dict.fromkeys(each.model for each in found))
    colours = dict(zip(models, style.sequence(len(models)), strict=True))
    for axes, kind in zip(panels, kinds, strict=True):
        shown = [each for each in found if bool(each.mixture) is kind]
        for each in shown:
            _by_rate(axes, each, colours[each.model])
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(sorted({rate for each in shown for rate in each.means})))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.set_xlabel("maximum learning rate")
        axes.set_title("mixtures" if kind else "dense models")
        style.loss_axis(axes)
        axes.tick_params(labelleft=True)
    for axes, kind in zip(panels, kinds, strict=True):  # once the panels' common range is known
        shown = [each for each in found if bool(each.mixture) is kind]
        style.name_ends(axes, [(each.model, list(each.means.values())[-1], colours[each.model]) for each in shown])
    for axes in panels[1:]:
        axes.set_ylabel("")
    return figure


def _by_rate(axes: Axes, tuned: Tuned, colour: style.Colour) -> None:
    rates, means = list(tuned.means), list(tuned.means.values())
    axes.plot(rates, means, color=colour)
    for _, losses in tuned.table.iterrows():
        style.points(axes, rates, losses, colour, "o", markersize=2.6)
    ring = {"markersize": 8, "markeredgecolor": colour, "markeredgewidth": 1.1}
    style.points(axes, [tuned.best], [min(means)], "none", "o", **ring)
    if tuned.used is not None:
        loss = float(np.exp(np.interp(np.log(tuned.used), np.log(rates), np.log(means))))
        style.points(axes, [tuned.used], [loss], colour, "|", **(ring | {"markersize": 9}))
