"""Figures of the law in D1 and D2 at fixed sizes."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from upcycle.errors import UserError
from upcycle.laws.forms import get_law
from upcycle.laws.result import FitResult
from upcycle.paper import style
from upcycle.paper.inputs import Grid, Inputs
from upcycle.study.spec import short_count


def figure_3(inputs: Inputs, sweep: str | None = None, model: str | None = None) -> Figure:
    """Figure 3. Loss curves of upcycling.

    Held-out loss during upcycled training at constant learning rate, measured on a fixed subset of the held-out text;
    one curve for each D1, the tokens of the dense model. 0 is the copied model before its first step. Markers: finished
    models, which decay from a point of the same curve, measured on the whole held-out text.

    Raises `UserError` when a run folder is missing.
    """
    grid = inputs.grid(sweep, model)
    figure = style.new_figure(style.COLUMN, 2.5, mark=inputs.mark)
    axes = figure.subplots()
    seed = int(grid.rows["seed"].min())
    first = math.inf
    curves = []
    for D1 in grid.D1:
        rows = grid.rows[(grid.rows["D1"] == D1) & (grid.rows["seed"] == seed)]
        curve = _trunk_curve(inputs, rows.sort_values("D2")["id"].iloc[-1])
        curves.append((rows, curve))
        first = min(first, *(tokens for tokens, _ in curve if tokens > 0))
    origin = first / 2  # where a logarithmic axis shows 0
    ends: list[tuple[str, float, style.Colour]] = []
    for (D1, (colour, marker)), (rows, curve) in zip(style.looks(grid.D1).items(), curves, strict=True):
        ends.append((short_count(D1), rows.sort_values("D2")["loss"].iloc[-1], colour))
        start = [(origin, loss) for tokens, loss in curve if tokens == 0]
        trained = [(tokens, loss) for tokens, loss in curve if tokens > 0]
        axes.plot(*zip(*start, *trained, strict=True), color=colour, linewidth=1)
        style.points(axes, rows["D2"], rows["loss"], colour, marker)
    budgets = [2 * first, *grid.D2] if 4 * first < grid.D2[0] else list(grid.D2)
    style.token_axis(axes, [origin, *budgets], "tokens of upcycled training, $D_2$", apart=0.13)
    style.relabel(axes, origin, "0")
    style.loss_axis(axes)
    style.name_ends(axes, ends, "$D_1$")
    return figure


def figure_4(inputs: Inputs, sweep: str | None = None, model: str | None = None) -> Figure:
    """Figure 4. Loss against D2 with power laws; their exponents against D1.

    Top: loss of finished upcycled models against their tokens D2, with a power law (Equation 7) for each D1. Bottom:
    the exponents of these power laws against D1, with the fit of Equation 10. Bars: 95 % intervals, cut at the edge of
    the panel; left out where all would be cut.
    """
    figure, bottom = _with_parameter(inputs, inputs.grid(sweep, model), "alpha", "exponent_vs_d1", "linear")
    bottom.set_ylabel(r"exponent of $D_2$, $-\alpha(D_1)$")
    return figure


def figure_12(inputs: Inputs, sweep: str | None = None, model: str | None = None) -> Figure:
    """Figure 12. Loss against D2 with power laws; their scaling factors against D1.

    Top: as Figure 4. Bottom: the scaling factors A of the same power laws against D1, with the fit of Equation 16.
    Bars: 95 % intervals, cut at the edge of the panel; left out where all would be cut.
    """
    figure, bottom = _with_parameter(inputs, inputs.grid(sweep, model), "A", "scale_vs_d1", "log")
    style.number_ticks(bottom)
    bottom.set_ylabel("scaling factor $A(D_1)$")
    return figure


def _with_parameter(inputs: Inputs, grid: Grid, parameter: str, law: str, scale: str) -> tuple[Figure, Axes]:
    """Losses against D2 above, a parameter of their power laws against D1 below; returns the lower panel too."""
    figure = style.new_figure(style.COLUMN, 4.4, mark=inputs.mark)
    top, bottom = figure.subplots(2, 1, height_ratios=[1.35, 1])
    fit = _loss_by_D1(top, inputs, grid)
    bottom.set_yscale(scale)
    _relation(bottom, fit, parameter, law)
    style.token_axis(bottom, grid.D1, "tokens of the dense model, $D_1$")
    return figure, bottom


def _trunk_curve(inputs: Inputs, run_id: str) -> list[tuple[int, float]]:
    """(tokens, held-out loss) along the trunk that a finished model decays from, or along a run without a trunk."""
    chain = inputs.chain(run_id)
    segments = chain[:-1] or chain
    points = {int(t): float(loss) for run in segments for t, loss in inputs.record(run, "metrics")["curve_heldout"]}
    return sorted(points.items())


def _loss_by_D1(axes: Axes, inputs: Inputs, grid: Grid) -> FitResult:
    """Finished losses against D2, each D1 with its power law; returns the grouped fit of Equation 7."""
    fit = inputs.fit(grid, "power", by="D1")
    curves = fit.group_fits
    D2 = np.geomspace(grid.D2[0], grid.D2[-1], 100)
    ends: list[tuple[str, float, style.Colour]] = []
    for D1, (colour, marker) in style.looks(grid.D1).items():
        rows = grid.rows[grid.rows["D1"] == D1]
        if D1 in curves:
            axes.plot(D2, get_law("power").predict(curves[D1].values, {"D2": D2}), color=colour, linewidth=1)
        style.points(axes, rows["D2"], rows["loss"], colour, marker)
        ends.append((short_count(D1), rows[rows["D2"] == rows["D2"].max()]["loss"].mean(), colour))
    style.token_axis(axes, grid.D2, "tokens of upcycled training, $D_2$")
    style.loss_axis(axes)
    style.name_ends(axes, ends, "$D_1$")
    return fit


def _relation(axes: Axes, fit: FitResult, parameter: str, law: str) -> None:
    """A parameter of the power laws against D1, its intervals, and the law fitted through it.

    Raises `UserError` when that law was not fitted.
    """
    curves = fit.group_fits
    sign = -1 if law == "exponent_vs_d1" else 1
    D1 = np.array(list(curves), dtype=float)
    relation = (fit.relations or {}).get(law)
    if relation is None:
        raise UserError(f"the fit of `{fit.law}` by {fit.by} has no relation `{law}`: {fit.statement}")
    values = {name: entry["value"] for name, entry in relation["parameters"].items()}
    line = np.geomspace(D1.min(), D1.max(), 100)
    axes.plot(line, get_law(law).predict(values, {"D1": line}), color=style.FIT, label=get_law(law).label)
    points = [sign * curve.values[parameter] for curve in curves.values()]
    style.frame_values(axes, [*points, *get_law(law).predict(values, {"D1": D1})])
    low, high = axes.get_ylim()
    bars = {}
    for at, curve in curves.items():
        bounds = sorted(sign * bound for bound in curve.intervals.get(parameter, []) if bound is not None)
        if len(bounds) == 2:
            bars[at] = bounds
    cut = [bounds[0] < low or bounds[1] > high for bounds in bars.values()]
    if bars and all(cut):  # bars from edge to edge would show nothing
        bars = {}
        axes.set_title("every 95 % interval reaches\nbeyond this panel", loc="left", color=style.GREY)
    for (at, (colour, marker)), value in zip(style.looks(list(curves)).items(), points, strict=True):
        if at in bars:
            axes.vlines(at, bars[at][0], bars[at][1], color=colour, linewidth=1)
        style.points(axes, [at], [value], colour, marker)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)  # above the panel: bars may fill it
