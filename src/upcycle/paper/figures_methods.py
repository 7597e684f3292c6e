"""A figure of upcycling methods beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from upcycle.paper import style
from upcycle.paper.inputs import Inputs
from upcycle.paper.method_arms import MethodArms, RouterCurves, compare_methods, router_curves
from upcycle.paper.paired import Difference
from upcycle.study.spec import short_count

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B6B6B")
"""Okabe and Ito's without yellow, which is too pale for a line; black is copying."""
Dash = Literal["-", "--"]
DASHES: tuple[Dash, ...] = ("-", "--")


def methods(inputs: Inputs, sweeps: Sequence[str] | None = None) -> Figure:
    """Upcycling methods compared.

    Top: final loss of each method minus that of copying at the same budgets, paired by seed, at the smallest and the
    largest D1 and for each D2 (light to dark: growing). Top right: the interaction, which is the slope of the loss in
    ln D2 at the largest D1 minus that at the smallest, minus the interaction of copying. Bars: 95 % intervals, for all
    methods with the parents of copying together. Bottom, at the largest budgets, means over seeds: router entropy as a
    share of its maximum, experts that no token of a batch was sent to, and the largest distance between two experts
    over an expert's norm.

    Raises `UserError` for a study of one method, and for runs of different kernels.
    """
    found = compare_methods(inputs, sweeps)
    curves = router_curves(inputs, found)
    height = 1.2 + 0.24 * len(found.others)
    if not curves:
        figure = style.new_figure(style.PAGE, height + 0.2, mark=inputs.mark)
        _final(figure, found, "Not drawn: routers during training, which only trained runs have.")
        return figure
    figure = style.new_figure(style.PAGE, height + 2.5, mark=inputs.mark)
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=[height, 2.5])[:, 0]
    _final(top, found)
    looks = _looks(found)
    _routers(bottom.subplots(1, 3), curves, looks)
    lines = [Line2D([], [], color=c, linestyle=dash, label=arm) for arm, (c, dash) in looks.items()]
    style.legend_below(bottom, lines, columns=5)
    return figure


def _final(figure: FigureBase, found: MethodArms, note: str | None = None) -> None:
    """How final losses differ at the smallest and the largest D1, and how interactions do."""
    ends = [found.D1[0], found.D1[-1]] if len(found.D1) > 1 else found.D1
    interactions = found.interactions()
    panels = figure.subplots(1, len(ends) + (interactions is not None), sharey=True, squeeze=False)[0]
    overall = found.differences(found.losses())
    order = sorted(found.others, key=lambda arm: -overall[arm].nats)
    for axes, D1 in zip(panels, ends, strict=False):
        _losses(axes, found, D1, order)
    if interactions is not None:
        _bars(panels[-1], found.differences(interactions), order, 0.0, style.FIT, "D")
        _rows(panels[-1], order, "minus copying's (nats)")
        panels[-1].set_title("interaction", loc="left")
    style.legend_below(figure, style.look_handles(style.looks(found.D2), _budget, linestyle="none", **style.RIM), note)


def _budget(D2: int) -> str:
    return f"$D_2$ = {short_count(D2)}"


def _looks(found: MethodArms) -> dict[str, tuple[str, Dash]]:
    """Colour and dash of each method's curves."""
    kinds = [(colour, dash) for dash in DASHES for colour in COLOURS]
    first: dict[str, tuple[str, Dash]] = {found.reference: (style.DENSE, "-")}
    return first | dict(zip(found.others, cycle(kinds), strict=False))


def _losses(axes: Axes, found: MethodArms, D1: int, order: Sequence[str]) -> None:
    """Differences of final losses to the reference's at one D1, a row a method and in it a marker for each D2."""
    looks = style.looks(found.D2)
    steps = np.linspace(0.26, -0.26, len(found.D2)) if len(found.D2) > 1 else [0.0]
    own = set(found.rows.loc[found.rows["D1"] == D1, "D2"])
    for (D2, (colour, marker)), step in zip(looks.items(), steps, strict=True):
        if D2 in own:
            _bars(axes, found.differences(found.losses(D1, D2)), order, float(step), colour, marker)
    _rows(axes, order, "loss minus copying's (nats)")
    axes.set_title(f"$D_1$ = {short_count(D1)}", loc="left")


def _bars(
    axes: Axes,
    differences: Mapping[str, Difference],
    order: Sequence[str],
    step: float,
    colour: style.Colour,
    marker: str,
) -> None:
    """A marker and its interval in each row."""
    for place, arm in enumerate(order):
        difference = differences[arm]
        if np.isfinite(difference.bound):
            low, high = difference.nats - difference.bound, difference.nats + difference.bound
            axes.hlines(place + step, low, high, color=colour, linewidth=1)
        style.points(axes, [difference.nats], [place + step], colour, marker)


def _rows(axes: Axes, order: Sequence[str], label: str) -> None:
    axes.axvline(0, color=style.GREY, linewidth=0.9)
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel(label)


def _routers(panels: Sequence[Axes], curves: Mapping[str, RouterCurves], looks: Mapping[str, tuple[str, Dash]]) -> None:
    """Router entropy, unused experts and expert distance against tokens."""
    entropy, dead, distance = panels
    for arm, curve in curves.items():
        colour, dash = looks[arm]
        shown: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.0}
        tokens, means = _smoothed(curve.tokens, curve.entropy)
        entropy.plot(tokens, 100 * means, **shown)
        tokens, means = _smoothed(curve.tokens, curve.dead)
        dead.plot(tokens, 100 * means, **shown)
        trained = [
            (tokens, value) for tokens, value in zip(curve.heldout_tokens, curve.distance, strict=True) if tokens
        ]
        if trained:
            distance.plot(*zip(*trained, strict=True), **shown)
    last = max(curve.tokens[-1] for curve in curves.values())
    for axes, label in (
        (entropy, "router entropy, % of max."),
        (dead, "unused experts, %"),
        (distance, "distance between experts"),
    ):
        starts = [float(np.min(line.get_xdata())) for line in axes.lines]
        first = min(starts, default=last / 64)
        ticks = [last / 8**k for k in range(3) if last / 8**k >= first] or [last]
        style.token_axis(axes, ticks, "upcycled tokens")
        axes.set_xlim(first / 1.2, last * 1.2)
        axes.set_ylabel(label)
    dead.set_ylim(0, max(dead.get_ylim()[1], 1.0))
    if not distance.lines:
        distance.text(0.5, 0.5, "not measured by\nseveral processes", transform=distance.transAxes, ha="center")


def _smoothed(tokens: Sequence[int], values: Sequence[float], stretches: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Means over stretches of tokens, each a factor longer than the one before: a batch is a noisy sample."""
    at, value = np.array(tokens, dtype=float), np.array(values)
    stretch = np.digitize(at, np.geomspace(at.min(), at.max() * 1.0001, stretches + 1))
    kept = np.unique(stretch)
    return np.array([at[stretch == k].mean() for k in kept]), np.array([value[stretch == k].mean() for k in kept])
