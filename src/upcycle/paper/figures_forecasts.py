"""Figure of forecasts against the losses that were measured later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from upcycle.laws.forecast import forecast_scores
from upcycle.paper import style
from upcycle.paper.inputs import Inputs
from upcycle.paper.predictions import round_ticks
from upcycle.paper.render import number


def forecast_errors(inputs: Inputs) -> Figure:
    """Errors of forecasts that were written before the runs trained.

    Predicted minus measured loss of each larger run, by measured loss. Bars: 95 % intervals, which add the bootstrap of
    the fit and the noise of one loss; filled points: those whose interval holds the measured loss. Naive rules have no
    interval, and bars that are much longer than the others are cut. Below each name: the root mean square error, and
    the share of intervals that hold. Each panel has an axis of its own.

    Raises `UserError` as `Inputs.forecasts` does.
    """
    loss_by_id = inputs.loss_by_id()
    found = [
        (rule, predictions, forecast_scores(predictions, loss_by_id))
        for written in inputs.forecasts().values()
        for rule, predictions in written["predictions"].items()
    ]
    columns = min(len(found), 3)
    lines = -(-len(found) // columns)
    figure = style.new_figure(style.PAGE, 0.4 + 1.9 * lines, mark=inputs.mark)
    panels = figure.subplots(lines, columns, sharex=True, squeeze=False).ravel()
    for axes, (rule, predictions, score) in zip(panels, found, strict=False):
        axes.axhline(0, color=style.GREY, linewidth=0.8)
        axes.set_ylim(-_reach(predictions, loss_by_id), _reach(predictions, loss_by_id))
        for each in predictions:
            if each["loss"] is None:
                continue
            measured = loss_by_id[each["id"]]
            held = each["low"] is None or each["low"] <= measured <= each["high"]
            colour = style.FIT if held else style.SCRATCH
            if each["low"] is not None:
                ends = [each["low"] - measured, each["high"] - measured]
                axes.plot([measured, measured], ends, color=colour, linewidth=0.8)
            fill = colour if held else "white"
            axes.plot(measured, each["loss"] - measured, "o", color=colour, markerfacecolor=fill, markersize=3.5)
        share = "" if np.isnan(score["held by 95 %"]) else f", {score['held by 95 %']:.0%} held"
        axes.set_title(f"{rule.replace('_', ' ')}\nRMS {number(score['RMS (nats)'], 2)}{share}", loc="left")
        axes.xaxis.set_major_locator(round_ticks())
        axes.yaxis.set_major_locator(round_ticks())
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    for place, axes in enumerate(panels[: len(found)]):
        if place % columns == 0:
            axes.set_ylabel("predicted − measured (nats)")
        if place + columns >= len(found):
            axes.set_xlabel("measured loss (nats per token)")
            axes.tick_params(labelbottom=True)
    return figure


def _reach(predictions: Sequence[Mapping[str, Any]], loss_by_id: Mapping[str, float]) -> float:
    """Half the height of a panel in nats: it shows every error, and half of the intervals whole."""
    known = [each for each in predictions if each["loss"] is not None]
    errors = [abs(each["loss"] - loss_by_id[each["id"]]) for each in known]
    ends = [
        max(abs(each[end] - loss_by_id[each["id"]]) for end in ("low", "high"))
        for each in known
        if each["low"] is not None
    ]
    largest = max([*errors, 1e-4])
    return 1.15 * max(largest, min(float(np.median(ends)), 4 * largest) if ends else 0.0)
