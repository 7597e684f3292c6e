"""Figures of decisions: upcycle or train from scratch, on how many tokens, at what cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from upcycle.decisions.allocation import three_way
from upcycle.decisions.curves import ThreeLaws
from upcycle.decisions.thresholds import d_star, threshold_d2
from upcycle.errors import UserError
from upcycle.laws.terms import Array
from upcycle.paper import style
from upcycle.paper.inputs import Inputs
from upcycle.paper.three_laws import (
    DASHED,
    OUTSIDE,
    STAR,
    clear_of,
    count_axis,
    data_box,
    name_region,
    pointwise_band,
    size_is_inside,
    size_words,
    sizes_of,
    solid_inside,
    three_laws,
    tokens_to_show,
)
from upcycle.study.spec import Positive, short_count

RING: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "markersize": 4.6, "linestyle": "none"}
RING |= {"markeredgewidth": 1.1, "zorder": 4}
Plan = Literal["dense", "moe", "two_stage"]
PLANS: dict[Plan, tuple[str, str, str]] = {
    "dense": (style.DENSE, "x", "dense"),
    "moe": (style.SCRATCH, "o", "MoE from scratch"),
    "two_stage": (style.FIT, "^", "dense, then upcycled"),
}
"""Look of each plan of Figure 16."""
UPCYCLE = "#6FA8D3"
"""Region in which upcycling is ahead even with the dense model's FLOPs counted."""
UPCYCLE_SUNK = "#BFDAEE"
"""Region in which it is ahead of training from scratch on the same D2 tokens only."""
FROM_SCRATCH = "#FBEBDD"
"""Region in which training from scratch is ahead."""
AHEAD = {
    "scratch": "training from scratch is ahead",
    "sunk": "upcycling is ahead, but not where the dense model's FLOPs count",
    "paid": "upcycling is ahead, also where the dense model's FLOPs count",
}
"""Regions of a map of thresholds in words."""
REACH = 2.0
"""How far beyond the data in D1 and D2 a map of thresholds reaches, as a factor."""


def figure_15(inputs: Inputs, sizes: Sequence[Positive] | None = None) -> Figure:
    """Figure 15. Training from scratch against upcycling, by size and sunk cost.

    Loss against tokens: of the mixture trained from scratch on D tokens (orange, with the band of 95 % of the draws),
    and of the mixture upcycled on D2 tokens from dense models trained on D1 tokens (light to dark). Rings: training
    from scratch on D2 tokens and upcycling give equal losses. Stars on the axis: D* of Equation 13, where they do so at
    D1 = D2. Solid lines: within the data. Dashed lines on grey: the size or the tokens lie outside the data.
    """
    three = three_laws(inputs)
    shown = sizes_of(three, sizes, (1e9, 7e9, 7e10))
    D1 = tokens_to_show(three.upcycled.box["D1"])
    figure = style.new_figure(style.PAGE if len(shown) > 1 else style.COLUMN, 3.0, mark=inputs.mark)
    for axes, size in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _loss_against_tokens(axes, three, size, D1)
    figure.axes[0].set_ylabel("loss (nats per token)")
    colours = style.sequence(len(D1))
    seen = {line.get_gid() for axes in figure.axes for line in axes.lines if np.size(line.get_xdata())}
    handles = [
        Line2D([], [], color=style.SCRATCH, linewidth=1.6, label="MoE from scratch"),
        *(Line2D([], [], color=c, label=f"$D_1$ = {short_count(d)}") for c, d in zip(colours, D1, strict=True)),
        *([Line2D([], [], color=style.GREY, label="equal losses", **RING)] if "equal" in seen else []),
        *([Line2D([], [], label="$D^*$", **STAR)] if "d_star" in seen else []),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=7 if len(shown) > 1 else 3, columnspacing=1)
    return figure


def _loss_against_tokens(axes: Axes, three: ThreeLaws, size: float, D1: Sequence[float]) -> None:
    """One panel of Figure 15."""
    moe, upcycled, central = three.need("moe"), three.upcycled, three.without_draws()
    fitted = size_is_inside(three, size)
    tokens = np.geomspace(D1[0] / 10, D1[-1], 201)
    axes.set_facecolor(OUTSIDE)
    if fitted:
        axes.axvspan(*moe.box["D"], color="white", zorder=0)
    if moe.n_draws > 1:
        low, high = pointwise_band(moe.loss_draws(D=tokens, N1=size))
        axes.fill_between(tokens, low, high, color=style.SCRATCH, alpha=0.22, linewidth=0)
    scratch = moe.loss(D=tokens, N1=size)
    solid_inside(axes, tokens, scratch, _within(tokens, moe.box["D"]) & fitted, style.SCRATCH, 1.6)
    for d1, colour in zip(D1, style.sequence(len(D1)), strict=True):
        here = _within(tokens, upcycled.box["D2"]) & fitted & (upcycled.outside(D1=d1)["D1"] == 0)
        solid_inside(axes, tokens, upcycled.loss(D1=d1, D2=tokens, N1=size), here, colour, 1.1)
        roots = [root for root in threshold_d2(central, size, d1).roots if tokens[0] < root < tokens[-1]]
        axes.plot(roots, moe.loss(D=np.array(roots), N1=size), color=colour, gid="equal", **RING)
    axes.set_title(size_words(three, size), loc="left")
    axes.set_xlim(tokens[0], tokens[-1])
    style.loss_axis(axes, "")
    floor = axes.get_ylim()[0]
    for root in d_star(central, size).roots:
        if tokens[0] < root < tokens[-1]:
            top = float(moe.loss(D=root, N1=size))
            axes.plot([root, root], [floor, top], color="black", linewidth=0.7, linestyle=":")
            axes.plot([root], [floor], clip_on=False, zorder=5, gid="d_star", **STAR)
    axes.set_ylim(floor, None)
    count_axis(axes, "x", "tokens, $D$ or $D_2$", most=6)


def figure_16(inputs: Inputs) -> Figure:
    """Figure 16. Compute-optimal training: dense, a mixture from scratch, and both stages of upcycling.

    Top: the lowest loss at a budget with size and tokens free, by the laws of dense models, of the mixture from
    scratch, and of upcycling with its dense model trained first. Markers: the losses fitted, at their cost. Bottom: the
    loss of each plan minus that of the mixture from scratch, with the band of 95 % of the draws. Solid lines: size and
    tokens of the optimum each lie within the data; dashed: they do not. Grey: budgets beyond the data.

    Raises `UserError` for fits without a law of dense models or of MoEs from scratch, or without model sizes.
    """
    three = three_laws(inputs)
    measured = _measured(inputs, three)
    spent = np.concatenate([cost for cost, _ in measured.values()])
    # Three decades beyond the costliest run, where the paper asks which plan wins.
    flops = np.geomspace(spent.min() / 10, spent.max() * 1000, 49)
    table = three_way(three.without_draws(), flops)
    figure = style.new_figure(style.COLUMN, 4.3, mark=inputs.mark)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.5, 1])
    handles: list[Line2D] = []
    reference = _plan_losses(three, table, "moe")
    for lineage, (colour, marker, label) in PLANS.items():
        losses = _plan_losses(three, table, lineage)
        inside = (table[f"{lineage}_outside"] == 0).to_numpy()
        solid_inside(top, flops, losses[0], inside, colour, 1.3, gid=lineage)
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=3, linewidth=1.3, label=label))
        if lineage in measured:
            top.plot(*measured[lineage], marker, color=colour, markersize=2, alpha=0.45, markeredgewidth=0.4, zorder=1)
        extra = losses - reference
        solid_inside(bottom, flops, extra[0], inside, colour, 1.3, gid=lineage)
        if len(extra) > 2 and lineage != "moe":
            bottom.fill_between(flops, *pointwise_band(extra[1:]), color=colour, alpha=0.2, linewidth=0)
    for axes in (top, bottom):
        axes.set_facecolor(OUTSIDE)
        axes.axvspan(spent.min(), spent.max(), color="white", zorder=0)
    style.loss_axis(top, "lowest loss (nats per token)")
    bottom.set_ylabel("loss − MoE's (nats)")
    bottom.set_xscale("log")
    bottom.xaxis.set_minor_locator(NullLocator())
    bottom.set(xlim=(flops[0], flops[-1]), xlabel="compute, $C$ (FLOPs)")
    top.legend(handles=handles, loc="lower left")
    return figure


def _plan_losses(three: ThreeLaws, table: pd.DataFrame, lineage: Plan) -> Array:
    """Losses [1 + B, budgets] of the best plans of a lineage: the central estimate, then each draw."""
    curve = three.upcycled if lineage == "two_stage" else three.need(lineage)
    tokens = ("D1", "D2") if lineage == "two_stage" else ("D",)
    plan = {name: table[f"{lineage}_{name.lower()}"].to_numpy() for name in (*tokens, "N1")}
    if lineage == "two_stage":  # an optimum at the bounds of the search is none
        plan["D1"] = np.where(table["two_stage_at_bound"] == "", plan["D1"], np.nan)
    return curve.loss_rows(**plan)


def _measured(inputs: Inputs, three: ThreeLaws) -> dict[Plan, tuple[Array, Array]]:
    """FLOPs (6 N D of all stages) and losses of the runs fitted, by kind of plan."""
    laws = {curve.law.name for curve in three.curves}
    ids = {run_id for fit in inputs.fits.values() if fit.law in laws for run_id in fit.ids}
    rows = inputs.losses[inputs.losses["id"].isin(ids)]
    mixture = (rows["n_expert"] == three.n_expert) & (rows["top_k"] == three.top_k)
    found: dict[Plan, tuple[Array, Array]] = {}
    for plan in PLANS:
        lineage = "up" if plan == "two_stage" else plan
        part = rows[(rows["lineage"] == lineage) & (mixture | (lineage == "dense"))]
        if not part.empty:
            N1, N2, D1, D, loss = part[["N1", "N2", "D1", "D", "loss"]].to_numpy(float).T
            found[plan] = 6 * (N1 * D1 + N2 * D), loss
    if not found:
        raise UserError("losses.csv has none of the runs that the laws were fitted to: fit again")
    return found


def _within(x: Array, box: tuple[float, float]) -> NDArray[np.bool_]:
    return (x >= box[0]) & (x <= box[1])


def thresholds(inputs: Inputs, sizes: Sequence[Positive] | None = None) -> Figure:
    """Upcycle or train from scratch, by the tokens D1 and D2.

    Who is ahead, given a dense model trained on D1 tokens and D2 tokens for the mixture. Solid edge: training from
    scratch on D2 tokens gives the same loss (dense cost sunk). Dashed edge: it does so with the dense model's FLOPs
    added to its budget (dense cost paid). Hatched: fewer than 95 % of the draws agree on the side of the solid edge.
    Star: D* of Equation 13, where the solid edge crosses D1 = D2. Frame: the data, at sizes that were fitted; the map
    ends at twice the data.
    """
    three = three_laws(inputs)
    shown = sizes_of(three, sizes, (1e9, 7e9))
    figure = style.new_figure(style.PAGE if len(shown) > 1 else style.COLUMN, 3.8, mark=inputs.mark)
    panels = list(zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True))
    by_size = {size: _regions(axes, three, size) for axes, size in panels}
    if all(len(names & AHEAD.keys()) == 1 and "disagree" not in names for names in by_size.values()):
        return style.in_words(_no_threshold(three, by_size), mark=inputs.mark)
    seen = set().union(*by_size.values())
    for axes in figure.axes[1:]:
        axes.set_ylabel("")
    hatched: dict[str, Any] = {"facecolor": "none", "edgecolor": style.GREY, "hatch": "//////", "linewidth": 0}
    handles: dict[str, Artist] = {
        "scratch": Patch(color=FROM_SCRATCH, label="from scratch ahead"),
        "sunk": Patch(color=UPCYCLE_SUNK, label="upcycling ahead (dense cost sunk)"),
        "paid": Patch(color=UPCYCLE, label="upcycling ahead (dense cost paid)"),
        "disagree": Patch(**hatched, label="draws disagree"),
        "d_star": Line2D([], [], label="$D^*$", **STAR),
        "data": Patch(facecolor="none", edgecolor="black", linestyle=DASHED, linewidth=0.8, label="data"),
        "diagonal": Line2D([], [], color="black", linewidth=0.7, linestyle=":", label="$D_1 = D_2$"),
    }
    visible = [handle for name, handle in handles.items() if name in seen]
    figure.legend(handles=visible, loc="outside lower center", ncols=3 if len(shown) > 1 else 2, columnspacing=1.4)
    return figure


def _no_threshold(three: ThreeLaws, by_size: Mapping[float, set[str]]) -> str:
    """Who is ahead everywhere at each size, where no edge lies on the map."""
    ahead = "; ".join(
        f"at N1 = {short_count(size)} {AHEAD[name]}" for size, names in by_size.items() for name in names & AHEAD.keys()
    )
    ranges = " and ".join(
        f"{name} = {short_count(low / REACH)} to {short_count(high * REACH)}"
        for name, (low, high) in three.upcycled.box.items()
        if name in ("D1", "D2")
    )
    return f"No threshold lies within {REACH:g} times the data ({ranges}), in 95 % of the draws: {ahead}."


def _regions(axes: Axes, three: ThreeLaws, size: float) -> set[str]:
    """Who is ahead over D1 and D2 at one size; returns what can be seen, for the legend."""
    moe, upcycled = three.need("moe"), three.upcycled
    D1, D2 = (np.geomspace(box[0] / REACH, box[1] * REACH, 121) for box in (upcycled.box["D1"], upcycled.box["D2"]))
    D1_grid, D2_grid = np.meshgrid(D1, D2)
    up = upcycled.loss(D1=D1_grid, D2=D2_grid, N1=size)
    sunk = moe.loss(D=D2_grid, N1=size) - up
    # 6 N1 D1 FLOPs of the dense model buy D1 N1 / N2 tokens of the mixture.
    paid = moe.loss(D=D2_grid + D1_grid / three.active_ratio, N1=size) - up
    regions = {"scratch": sunk <= 0, "sunk": (sunk > 0) & (paid <= 0), "paid": paid > 0}
    seen = {"diagonal", *(name for name, region in regions.items() if region.any())}
    axes.set_facecolor(FROM_SCRATCH)
    axes.set(xscale="log", yscale="log", xlim=(D1[0], D1[-1]), ylim=(D2[0], D2[-1]))
    for lead, colour, line in ((sunk, UPCYCLE_SUNK, "-"), (paid, UPCYCLE, "--")):
        axes.contourf(D1, D2, lead, levels=[0, np.inf], colors=[colour])
        edge = axes.contour(D1, D2, lead, levels=[0], colors="black", linewidths=1.1, linestyles=line)
        edge.set_gid("sunk" if lead is sunk else "paid")
    if three.n_draws:
        coarse = slice(None, None, 2)  # every other line: this is the one part that all draws enter
        leads = moe.loss_draws(D=D2[coarse, None], N1=size) - upcycled.loss_draws(
            D1=D1[None, coarse], D2=D2[coarse, None], N1=size
        )
        share = (leads > 0).mean(axis=0)
        seen |= {"disagree"} if ((share > 0.025) & (share < 0.975)).any() else set()
        hatch = axes.contourf(D1[coarse], D2[coarse], share, levels=[0.025, 0.975], colors="none", hatches=["//////"])
        hatch.set_edgecolor(style.GREY)
        hatch.set_linewidth(0)
    axes.plot(D1, D1, color="black", linewidth=0.7, linestyle=":")
    if size_is_inside(three, size):
        seen.add("data")
        axes.add_patch(data_box(upcycled.box["D1"], upcycled.box["D2"], fill=False, linestyle=DASHED, linewidth=0.8))
    for root in d_star(three.without_draws(), size).roots:
        if max(D1[0], D2[0]) < root < min(D1[-1], D2[-1]):
            axes.plot([root], [root], zorder=5, gid="d_star", **STAR)
            seen.add("d_star")
    free = clear_of(D1, D2, [(D1, D1)], upcycled.box["D1"], upcycled.box["D2"])
    for name, region in regions.items():
        name_region(axes, D1, D2, region & free, "from scratch" if name == "scratch" else "upcycle", (2.7, 2.4))
    axes.set_title(size_words(three, size), loc="left")
    count_axis(axes, "x", "tokens of the dense model, $D_1$", between=True)
    count_axis(axes, "y", "tokens of the mixture, $D_2$", between=True)
    return seen
