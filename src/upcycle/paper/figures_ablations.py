"""Figures of the ablations: schedules, learning rates of upcycling, balance loss, repeated data.

Beside the curves each shows by how much an arm differs from another at the same seed, since differences are far smaller
than losses. What a figure compares, and in which words, is in `ablations`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from upcycle.paper import style
from upcycle.paper.ablations import (
    COSINE,
    FRESH,
    SAME,
    WSD,
    balance_curve,
    coefficients,
    rates,
    repetition,
    schedules,
    usual_coefficient,
)
from upcycle.paper.inputs import Inputs
from upcycle.paper.paired import Ablation, Difference, GridPoint
from upcycle.study.spec import short_count
from upcycle.train.schedule import learning_rate

KINDS = {"dense": "dense", "moe": "mixture", "up": "upcycled", "cont": "trained on"}
COLOURS = (style.DENSE, style.SCRATCH, style.FIT, "#009E73", "#CC79A7")
HEIGHT = 2.6
MANY = 4
"""Arms above which curves are means over seeds."""
SHOWN = 20
"""The part of training from scratch whose curve is shown: from this fraction of its tokens on. Before, losses fall so
far that their differences later could not be seen."""


def figure_7(inputs: Inputs, sweeps: Sequence[str] = ("schedule_dense", "schedule_moe")) -> Figure:
    """Figure 7. WSD and cosine schedules of the learning rate.

    Left: held-out loss during training with either schedule, at the most tokens; markers: finished models. Middle: the
    schedules as shares of the maximum learning rate. Right: by how much a cosine schedule changes the final loss.
    Small markers: single seeds; large markers and bars: mean and 95 % interval.

    Raises `UserError` for a sweep without finished models, and for schedules other than both.
    """
    found = schedules(inputs, sweeps)
    lineages = list(dict.fromkeys(point.lineage for point in found.tables))
    colours = dict(zip(lineages, COLOURS, strict=False))
    figure, panels = _panels(inputs, 3, 1, "loss curves")
    if not inputs.mark:
        axes = panels.pop(0)
        looks = {arm: ("", dash) for arm, dash in zip(found.arms, ("-", "--"), strict=False)}
        ends = []
        for lineage, colour in colours.items():
            point = max((each for each in found.tables if each.lineage == lineage), key=lambda each: each.D)
            for arm, (_, dash) in looks.items():
                last = _curves(axes, inputs, found, point, arm, colour, linestyle=dash, linewidth=0.9)
            ends.append((KINDS[lineage], last, colour))
            rows = found.rows[found.rows["lineage"] == lineage]
            style.points(axes, rows["D"], rows["loss"], colour, "o")
        _loss_curves(axes, found.longest.D, "tokens, $D$")
        style.name_ends(axes, ends)
    _schedules(panels.pop(0), inputs, found)
    entries = [
        (f"{KINDS[point.lineage]}, {short_count(point.D)}", difference, colours[point.lineage])
        for point in found.tables
        if (difference := found.difference(COSINE, WSD, [point])) is not None
    ]
    _differences(panels.pop(0), entries, "loss with cosine\nminus that with WSD (nats)")
    return figure


def figure_8(inputs: Inputs, sweeps: Sequence[str] = ("upcycling_lr_constant", "upcycling_lr")) -> Figure:
    """Figure 8. Learning rates of upcycled training.

    Left: held-out loss during upcycled training at a constant learning rate, at that of dense training and at that of
    the mixture; 0 is the copied model before its first step. Right: by how much the final loss differs from that at the
    mixture's rate. Small markers: single seeds; large markers and bars: mean and 95 % interval.

    Raises `UserError` for a sweep without finished models, and where all runs are at one rate.
    """
    arms = rates(inputs, sweeps)
    found, colours = arms.ablation, dict(zip(arms.ablation.arms, COLOURS, strict=False))
    return _curves_and_differences(inputs, found, arms.claimed, colours)


def figure_9(inputs: Inputs, sweeps: Sequence[str] = ("auxiliary",)) -> Figure:
    """Figure 9. Coefficients of the load-balancing loss.

    Left: held-out cross-entropy during training; of many coefficients the means over seeds. Middle: balance loss of a
    layer (1: all experts used alike), averaged over seeds and stretches of training. Right: by how much the final
    cross-entropy differs from that with the study's own coefficient. Small markers: single seeds; large markers and
    bars: mean and 95 % interval.

    Raises `UserError` for a sweep without finished models, and where all runs have one coefficient.
    """
    found = coefficients(inputs, sweeps)
    colours = dict(zip(found.arms, style.sequence(len(found.arms)), strict=True))
    reference = usual_coefficient(inputs, found)
    figure, panels = _panels(inputs, 3, 2, "cross-entropy and balance loss during training")
    if not inputs.mark:
        point = found.longest
        left, middle = panels[:2]
        ends = []
        for arm, colour in colours.items():
            _curves(left, inputs, found, point, arm, colour)
            tokens, balance = _mean_balance(inputs, found, point, arm)
            middle.plot(tokens, balance, color=colour)
            ends.append((arm, float(balance[-1]), colour))
        _loss_curves(left, point.D, _tokens_label(point))
        _token_ticks(middle, point.D, _tokens_label(point))
        middle.set_ylabel("balance loss of a layer (1: even)")
        middle.set_yscale("log")
        style.number_ticks(middle)
        style.name_ends(middle, ends)
    _to_reference(panels[-1], found, reference, colours, f"cross-entropy minus\nthat with {reference} (nats)")
    panels[-1].set_ylabel("coefficient of the balance loss")
    return figure


def figure_10(inputs: Inputs, sweeps: Sequence[str] = ("repetition_same", "repetition_disjoint")) -> Figure:
    """Figure 10. Repeated data in upcycled training.

    Left: held-out loss during upcycled training on the data of the dense model, or on as large a part of the data that
    the dense model was not trained on. Right: by how much the final loss on the same data differs. Small markers:
    single seeds; large markers and bars: mean and 95 % interval.

    Raises `UserError` for a sweep without finished models, and unless both kinds of data are there.
    """
    found = repetition(inputs, sweeps)
    return _curves_and_differences(inputs, found, FRESH, dict(zip((FRESH, SAME), COLOURS[1:], strict=False)))


def _panels(inputs: Inputs, count: int, of_curves: int, what: str) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels; without the first `of_curves`, and with a note, where no run was trained."""
    if not inputs.mark:
        figure = style.new_figure(style.PAGE, HEIGHT, mark="")
        return figure, list(figure.subplots(1, count))
    left = count - of_curves
    figure = style.new_figure(style.PAGE if left > 1 else style.COLUMN, HEIGHT, mark=inputs.mark)
    figure.supxlabel(f"Not drawn: {what},\nwhich only trained runs have.", fontsize=7, color=style.GREY)
    return figure, list(figure.subplots(1, left, squeeze=False)[0])


def _curves_and_differences(
    inputs: Inputs, found: Ablation, reference: str, colours: Mapping[str, style.Colour]
) -> Figure:
    """Held-out curves of each arm at the most tokens, and how final losses differ from the reference's."""
    figure, panels = _panels(inputs, 2, 1, "loss curves")
    if not inputs.mark:
        point = found.longest
        for arm in found.arms:
            colour = colours.get(arm, style.GREY)
            _curves(panels[0], inputs, found, point, arm, colour, linewidth=0.9)
            rows = found.rows[(found.rows["arm"] == arm) & (found.rows["D"] == point.D)]
            style.points(panels[0], rows["D"], rows["loss"], colour, "o")
        _loss_curves(panels[0], point.D, _tokens_label(point))
    _to_reference(panels[-1], found, reference, colours, f"loss minus that with\n{reference} (nats)")
    return figure


def _to_reference(axes: Axes, found: Ablation, reference: str, colours: Mapping[str, style.Colour], label: str) -> None:
    """Differences of every arm to the reference, which is at 0."""
    entries = []
    for arm in found.arms:
        difference = found.difference(arm, reference, among=len(found.arms) - 1)
        if difference is not None:
            entries.append((arm, difference, colours.get(arm, style.GREY)))
    _differences(axes, entries, label)


def _differences(axes: Axes, entries: Sequence[tuple[str, Difference, style.Colour]], label: str) -> None:
    """A line for each entry, named beside the axis: single runs small, their mean with its 95 % interval large."""
    axes.axvline(0, color=style.GREY, linewidth=0.9)
    places = np.arange(len(entries))[::-1]
    for place, (_, difference, colour) in zip(places, entries, strict=True):
        if np.any(difference.values):  # a reference has no difference to itself
            axes.plot(
                difference.values, [place] * len(difference.values), "o", color=colour, markersize=2.2, alpha=0.55
            )
            if np.isfinite(difference.bound):
                axes.hlines(place, difference.nats - difference.bound, difference.nats + difference.bound, color=colour)
        style.points(axes, [difference.nats], [place], colour, "D")
    axes.set_yticks(places, [name for name, _, _ in entries])
    for text, (_, _, colour) in zip(axes.get_yticklabels(), entries, strict=True):
        text.set_color(colour)
    axes.set_ylim(-0.6, len(entries) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    seeds = "" if any(np.isfinite(each.bound) for _, each, _ in entries) else ", one seed"
    axes.set_xlabel(label + seeds)


def _curves(
    axes: Axes, inputs: Inputs, found: Ablation, point: GridPoint, arm: str, colour: style.Colour, **more: Any
) -> float:
    """Held-out losses during training, a line a seed, of many arms the mean; returns the last loss.

    Training from scratch is shown without its first steps.
    """
    since = 0 if point.lineage == "up" else point.D / SHOWN
    curves = [
        {row["tokens"]: row["heldout"] for row in inputs.curve(run_id) if row["tokens"] >= since and "heldout" in row}
        for run_id in _runs(found, point, arm)
    ]
    if len(found.arms) > MANY:
        shared = set.intersection(*(set(curve) for curve in curves))
        curves = [{tokens: float(np.mean([curve[tokens] for curve in curves])) for tokens in shared}]
    for curve in curves:
        tokens = sorted(curve)
        first = min(count for count in tokens if count)
        # A logarithmic axis has no 0.
        axes.plot([count or first / 2 for count in tokens], [curve[count] for count in tokens], color=colour, **more)
    return float(curves[0][max(curves[0])])


def _runs(found: Ablation, point: GridPoint, arm: str) -> list[str]:
    rows = found.rows[found.rows["arm"] == arm]
    for name, value in zip(GridPoint._fields, point, strict=True):
        rows = rows[rows[name] == value]
    return list(rows["id"])


def _mean_balance(inputs: Inputs, found: Ablation, point: GridPoint, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and balance loss of a layer, means over seeds and over stretches of tokens, each a factor longer."""
    curves = [np.array(balance_curve(inputs, run_id)) for run_id in _runs(found, point, arm)]
    tokens, balance = np.concatenate(curves).T
    edges = np.geomspace(tokens.min(), tokens.max() * 1.0001, 13)
    stretch = np.digitize(tokens, edges)
    means = [(tokens[stretch == k].mean(), balance[stretch == k].mean()) for k in np.unique(stretch)]
    return np.array(means).T[0], np.array(means).T[1]


def _loss_curves(axes: Axes, last: int, label: str) -> None:
    """Axes of held-out curves: losses from the lowest to where training has left its beginning."""
    style.loss_axis(axes)
    _token_ticks(axes, last, label)


def _token_ticks(axes: Axes, last: int, label: str) -> None:
    starts = [float(np.min(line.get_xdata())) for line in axes.lines]
    style.token_axis(axes, list(_halvings(min(starts), last)), label, apart=0.24)
    axes.set_xlim(left=min(starts) / 1.2)


def _halvings(low: float, high: float) -> Iterable[float]:
    """The largest count, its half, its quarter and so on."""
    while high > low:
        yield high
        high /= 2


def _tokens_label(point: GridPoint) -> str:
    return "tokens, $D$" if point.lineage in ("dense", "moe") else "tokens of upcycled training, $D_2$"


def _schedules(axes: Axes, inputs: Inputs, found: Ablation) -> None:
    """The learning rate during training as a share of its maximum, for each arm of the longest runs."""
    point = found.longest
    for arm, dash in zip(found.arms, ("-", "--"), strict=False):
        run_id = _runs(found, point, arm)[0]
        chain = [inputs.spec(each) for each in inputs.chain(run_id)]
        steps = [(run, step) for run in chain for step in range(run.start_step, run.end_step)]
        steps = steps[:: max(len(steps) // 400, 1)] + steps[-1:]
        tokens = [step * run.tokens_per_step for run, step in steps]
        shares = [learning_rate(run, step) / run.optim.lr for run, step in steps]
        axes.plot(tokens, shares, color=style.GREY, linestyle=dash)
        middle = int(0.62 * len(steps))
        axes.annotate(
            arm, (tokens[middle], shares[middle]), (0, 3 if arm == WSD else -3), textcoords="offset points",
            ha="center" if arm == WSD else "right", va="bottom" if arm == WSD else "top",
        )  # fmt: skip
    axes.set_ylabel("share of the maximum learning rate")
    axes.set_ylim(0, 1.12)
    axes.xaxis.set_major_locator(FixedLocator([0, point.D / 2, point.D]))
    axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
    axes.set_xlabel(_tokens_label(point))
