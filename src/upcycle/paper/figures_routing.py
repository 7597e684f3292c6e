"""Figure of routing: losses against the number of experts by gate, and what the routers did meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from upcycle.paper import style
from upcycle.paper.inputs import Inputs
from upcycle.paper.routes import FEW, ZERO, RouteArm, RouterState, Routes, router_states, routes

GATES = {
    "topk_softmax": (style.SCRATCH, "o"),
    "softmax_topk_renormalised": (style.SCRATCH, "X"),
    "softmax_topk": (style.FIT, "s"),
}
"""Colour and marker of a top-1 arm."""
TOP_2 = {"topk_softmax": (style.DENSE, "^"), "softmax_topk": ("#009E73", "v")}


def routing(
    inputs: Inputs,
    sweeps: Sequence[str] = (
        "top1",
        "top1_renormalised",
        "top2",
        "top2_softmax_first",
        "scratch",
        "biases",
        "biases_top2",
        "z_loss",
        "sigmoid",
    ),
) -> Figure:
    """Top-1 and more experts, by the order of softmax and top-k.

    Top left: by how much the final held-out loss differs from that with 4 experts, which the legend states; dashed:
    trained from scratch. Top middle: loss before the first update. Top right: by how much biases without a balance
    loss, the router z-loss and the sigmoid gate change the final loss. Bottom: share of the routers in the
    cross-entropy's gradient after one update; experts without a token in a batch, and entropy of the routers, over the
    last quarter of training. Markers: means over seeds; bars: lowest to highest seed.

    Raises `UserError` for sweeps without mixtures, or with mixtures of several sizes or budgets.
    """
    found = routes(inputs, sweeps)
    if inputs.mark:
        figure = style.new_figure(style.PAGE, 2.9, mark=inputs.mark)
        axes, beyond = figure.subplots(1, 2)
        _losses(axes, found)
        _beyond(beyond, found)
        style.legend_below(figure, _handles(found), columns=3)
        return figure
    figure = style.new_figure(style.PAGE, 4.6, mark="")
    (axes, start, beyond), bottom = figure.subplots(2, 3)
    _losses(axes, found)
    _beyond(beyond, found)
    states = {arm: router_states(inputs, found, arm) for arm in found.plain if arm.lineage == "up"}
    _of_experts(start, states, lambda state: state.first_loss, "loss before the first update\n(nats per token)")
    _of_experts(
        bottom[0],
        states,
        lambda state: max(state.gradient_share, ZERO),
        "routers' share of the\ncross-entropy gradient",
    )
    bottom[0].set_yscale("log")
    bottom[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: "0" if value <= ZERO else f"{100 * value:g} %"))
    bottom[0].yaxis.set_minor_locator(NullLocator())
    _of_experts(bottom[1], states, lambda state: 100 * state.dead, "experts without a token\nin a batch (%)")
    _of_experts(bottom[2], states, lambda state: state.entropy, "routers' entropy\n(1: all experts alike)")
    style.legend_below(figure, _handles(found), columns=3)
    return figure


def _look(arm: RouteArm) -> tuple[style.Colour, str]:
    return (GATES if arm.top_k == 1 else TOP_2).get(arm.gate, (style.GREY, "P"))


def _dash(arm: RouteArm) -> dict[str, Any]:
    return {"linestyle": "--" if arm.lineage == "moe" else "-"}


def _handles(found: Routes) -> list[Line2D]:
    handles = []
    for arm in found.plain:
        colour, marker = _look(arm)
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                marker=marker,
                label=f"{arm.name} ({found.tables[arm][FEW].mean():.2f})",
                **_dash(arm),
                **style.RIM,
            )
        )
    return handles


def _expert_axis(axes: Axes, experts: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sorted(experts)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("experts, $E$")


def _losses(axes: Axes, found: Routes) -> None:
    """Losses minus those with 4 experts, seed by seed: mean, lowest and highest; arms are a little apart."""
    plain = found.plain
    experts: set[int] = set()
    for place, arm in enumerate(plain):
        losses, (colour, marker) = found.tables[arm], _look(arm)
        table = losses.sub(losses[FEW], axis=0)
        apart = 2 ** (0.05 * (place - (len(plain) - 1) / 2))
        at = table.columns.to_numpy(float) * apart
        axes.vlines(at, table.min(), table.max(), color=colour, linewidth=0.9)
        style.points(axes, at, table.mean(), colour, marker, **_dash(arm))
        experts |= {int(n) for n in table.columns}
    _expert_axis(axes, sorted(experts))
    axes.axhline(0, color=style.GREY, linewidth=0.9)
    axes.set_ylabel("loss minus that with\n4 experts (nats)")


def _of_experts(
    axes: Axes,
    states: Mapping[RouteArm, Mapping[int, RouterState]],
    value: Callable[[RouterState], float],
    label: str,
) -> None:
    """A number of each arm's routers against experts."""
    for arm, by_experts in states.items():
        colour, marker = _look(arm)
        style.points(axes, by_experts, map(value, by_experts.values()), colour, marker, linestyle="-")
    _expert_axis(axes, sorted({n for by_experts in states.values() for n in by_experts}))
    axes.set_ylabel(label)


def _beyond(axes: Axes, found: Routes) -> None:
    """A line for each arm beyond the paper: its losses minus those of the paper's arm that it changes, seed by seed."""
    entries = found.beyond()
    axes.axvline(0, color=style.GREY, linewidth=0.9)
    for place, (arm, values) in enumerate(reversed(entries.items())):
        colour, _ = _look(arm.base)
        axes.hlines(place, min(values), max(values), color=colour, linewidth=0.9)
        style.points(axes, [float(np.mean(values))], [place], colour, "D")
    names = [arm.name.replace(", top-k first", "").replace(", softmax first", "*") for arm in entries]
    axes.set_yticks(range(len(entries)), names[::-1])
    axes.set_ylim(-0.6, len(entries) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.set_xlabel("loss minus that without\n(nats; *: softmax first)")
