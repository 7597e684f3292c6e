"""The paper's first figure: loss by configuration of the mixture, and the tokens up to which upcycling pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from upcycle.decisions.curves import ThreeLaws
from upcycle.decisions.thresholds import WORDS, Threshold, d_star, equation_2
from upcycle.errors import UserError
from upcycle.laws.forms import get_law
from upcycle.laws.result import FitResult
from upcycle.laws.tables.losses import law_columns
from upcycle.laws.terms import Array
from upcycle.paper import style
from upcycle.paper.ablations import joined
from upcycle.paper.inputs import Inputs
from upcycle.paper.three_laws import BAND, OUTSIDE, clear_of, count_axis, data_box, name_region, three_laws
from upcycle.study.spec import short_count

PUBLISHED_FROM = 1e8
"""Sizes N1 from which Equation 2 is drawn; it is the paper's, fitted to sizes about these and above."""
SIZES = 49
"""Sizes at which D* is solved."""


def figure_1(inputs: Inputs) -> Figure:
    """Figure 1. Loss by configuration, and the tokens up to which upcycling pays.

    Left: held-out loss over sparsity P = N_total / N2 and active parameters N2. Colour and contours: Equation 11;
    discs: the losses fitted. Right: D* of Equation 13 against the dense model's size N1, solved numerically (solid),
    and another root, where upcycling and training from scratch change places again (dotted). Band: 95 % of the draws
    that have a root. Dashed: the paper's approximation (Equation 2). Below: the share of draws without a root; in these
    one way is ahead at any number of tokens. Roots more than 10 times outside the tokens of the data do not count.
    Grey: sizes and tokens beyond the data.

    Raises `UserError` when there is no fit for either panel.
    """
    # Each panel needs fits of its own; a study that has one kind alone gets one panel.
    surface = any(fit.law == "configuration" and fit.by is None for fit in inputs.fits.values())
    try:
        three = three_laws(inputs)
        three.need("moe")
    except UserError as error:
        if not surface:
            raise UserError(
                f"Figure 1 shows a fit of law `configuration`, or the three laws that give D*; for these, {error}"
            ) from None
        three = None
    found = {} if three is None else _thresholds_by_size(three)
    if three is not None and not _some_root(three, found):
        if not surface:
            return style.in_words(_no_d_star(found), mark=inputs.mark)
        three = None
    panels = surface + (three is not None)
    figure = style.new_figure(style.PAGE if panels == 2 else style.COLUMN, 3.1, mark=inputs.mark)
    parts = list(figure.subfigures(1, panels, squeeze=False)[0])
    if surface:
        _surface(parts.pop(0), inputs, inputs.fit_of("configuration"))
    if three is not None:
        _d_star_by_size(parts.pop(0), three, found)
    return figure


def _thresholds_by_size(three: ThreeLaws) -> dict[float, Threshold]:
    """D* at sizes from the smallest fitted to far beyond the largest, or at the one size fitted."""
    low, high = three.upcycled.box["N1"]
    # Far beyond the largest size, since the question is asked about models that nobody has upcycled yet.
    sizes = [low] if low == high else np.geomspace(low / 1.5, high * 100, SIZES).tolist()
    return {size: d_star(three, size) for size in sizes}


def _token_limits(three: ThreeLaws) -> tuple[float, float]:
    """Ends of the axis of D*, in tokens."""
    low, high = three.need("moe").box["D"]
    return low / 5, high * 100


def _some_root(three: ThreeLaws, found: Mapping[float, Threshold]) -> bool:
    """Whether there is anything to draw: a root on the axis, of the central estimate or of the draws."""
    low, high = _token_limits(three)
    return any(low < root < high for each in found.values() for root in (*each.roots, *(each.band or ())))


def _no_d_star(found: Mapping[float, Threshold]) -> str:
    """Who is ahead where there is no D*."""
    ahead = joined(sorted({WORDS[each.below] for each in found.values()}))
    sizes = joined(list(dict.fromkeys(short_count(size) for size in (min(found), max(found)))))
    return f"No D* lies near the data at N1 = {sizes}: by these laws {ahead} is ahead at any number of tokens D1 = D2."


def _surface(figure: SubFigure, inputs: Inputs, fit: FitResult) -> None:
    """The fitted law over P and N2, and the losses that it was fitted to."""
    axes = figure.subplots()
    data = law_columns(inputs.rows_of(fit), ["P", "N2", "loss"])
    P, N2 = (np.geomspace(data[name].min() / 1.25, data[name].max() * 1.25, 161) for name in ("P", "N2"))
    P_grid, N2_grid = np.meshgrid(P, N2)
    loss = get_law(fit.law).predict(fit.values, {"P": P_grid.ravel(), "N2": N2_grid.ravel()}).reshape(P_grid.shape)
    span = min(loss.min(), data["loss"].min()), max(loss.max(), data["loss"].max())
    scale = Normalize(*span)
    colours = LinearSegmentedColormap.from_list("losses", style.sequence(64)[::-1])
    axes.grid(False)
    axes.pcolormesh(P, N2, loss, cmap=colours, norm=scale, rasterized=True)
    levels = MaxNLocator(9).tick_values(*span)
    lines = axes.contour(P, N2, loss, levels=levels, colors="white", linewidths=0.8)
    axes.scatter(
        data["P"], data["N2"], c=data["loss"], cmap=colours, norm=scale, s=30, edgecolors="white", linewidths=0.9
    ).set_gid("measured")
    # A dark ring around the white one: on a fitted surface that is right, a disc has the colour of its surroundings.
    axes.scatter(data["P"], data["N2"], s=44, facecolors="none", edgecolors="black", linewidths=0.6)
    count_axis(axes, "y", "active parameters, $N_2$", between=True)
    ticks = [value for value in (1, 2, 4, 8, 16, 32, 64) if P[0] < value < P[-1]]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("sparsity, $P = N_{\\mathrm{total}} / N_2$")
    axes.set(xlim=(P[0], P[-1]), ylim=(N2[0], N2[-1]))
    bar = figure.colorbar(
        ScalarMappable(scale, colours), ax=axes, location="top", aspect=30, pad=0.02, ticks=levels, format="%.4g"
    )
    bar.add_lines(lines)
    bar.set_label("loss (nats per token)")
    bar.outline.set_visible(False)


def _d_star_by_size(figure: SubFigure, three: ThreeLaws, by_size: Mapping[float, Threshold]) -> None:
    """D* against the dense model's size, and the share of draws that have none."""
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.5, 1])
    (low, high), tokens = three.upcycled.box["N1"], three.need("moe").box["D"]
    alone = low == high  # one size tells nothing of others: a point with its interval instead of curves
    sizes, found = np.array(list(by_size)), list(by_size.values())
    top.set(xlim=(low / 3, low * 3) if alone else (sizes[0], sizes[-1]), ylim=_token_limits(three))
    for axes in (top, bottom):
        axes.set_facecolor(OUTSIDE)
    top.add_patch(data_box((low / 1.1, high * 1.1), tokens, facecolor="white", edgecolor="none", zorder=0))
    bottom.axvspan(low / 1.1, high * 1.1, color="white", zorder=0)
    handles: list[Line2D | Patch] = []
    lines: list[tuple[Array, Array]] = []

    def line(x: Array, y: Array, label: str, **look: Any) -> None:
        """A curve, in the legend if any of it can be seen: two neighbouring points, or a marker, within the panel."""
        (drawn,) = top.plot(x, y, label=label, **look)
        seen = (y > top.get_ylim()[0]) & (y < top.get_ylim()[1])
        if (seen if look.get("marker") else seen[1:] & seen[:-1]).any():
            handles.append(drawn)
        lines.append((x, y))

    for number, dash, label in ((0, "-", "$D^*$ (Equation 13)"), (1, ":", "another root")):
        roots = np.array([_root(each, number) for each in found])
        marker = "os"[number] if alone else ""
        line(sizes, roots, label, gid=f"root {number + 1}", color=style.FIT, linestyle=dash, marker=marker)
    band = np.array([each.band or (np.nan, np.nan) for each in found]).T
    if three.n_draws:
        none = np.array([100 * each.shares["none"] for each in found])
        edge = 1.5 if alone else 0  # an area over a single size has no width: its edge shows it
        top.fill_between(sizes, *band, color=style.FIT, alpha=0.2, linewidth=edge)
        bottom.fill_between(sizes, none, color=style.GREY, linewidth=edge, gid="none")
        if np.isfinite(band).any():
            handles.append(Patch(color=style.FIT, alpha=0.2, linewidth=0, label=f"{BAND} with a root"))
    published = sizes[sizes >= PUBLISHED_FROM]
    if len(published) > 1:
        look = {"color": "black", "linestyle": "--", "linewidth": 0.9}
        line(published, equation_2(published), "Equation 2", gid="equation 2", **look)
    count_axis(top, "y", "tokens, $D^* = D_1 = D_2$")
    count_axis(bottom, "x", "parameters of the dense model, $N_1$")
    if alone:
        bottom.xaxis.set_major_locator(FixedLocator([low]))  # no power of ten may lie in so short an axis
    else:
        _name_sides(top, three, lines, sizes, band)
    style.legend_below(figure, handles, columns=2)
    bottom.set(ylim=(0, 100), yticks=(0, 50, 100))
    bottom.set_ylabel("no $D^*$\n(% of draws)")


def _root(threshold: Threshold, number: int) -> float:
    """The reported root (0) or another one (1), the next above it before those below; NaN where there is none."""
    if threshold.root is None:
        return np.nan
    place = threshold.roots.index(threshold.root)
    return (*threshold.roots[place:], *threshold.roots[:place], np.nan)[number]


def _name_sides(axes: Axes, three: ThreeLaws, lines: Sequence[tuple[Array, Array]], sizes: Array, band: Array) -> None:
    """Who is ahead on either side of D*, written clear of the lines and of the band."""
    x, y = np.geomspace(*axes.get_xlim(), 121), np.geomspace(*axes.get_ylim(), 81)
    moe, upcycled = three.need("moe"), three.upcycled
    lead = moe.loss(D=y[:, None], N1=x) - upcycled.loss(D1=y[:, None], D2=y[:, None], N1=x)
    clear = clear_of(x, y, lines, at_x=upcycled.box["N1"], at_y=moe.box["D"])
    low, high = (np.interp(np.log(x), np.log(sizes), edge) for edge in band)
    clear &= ~((y[:, None] >= low) & (y[:, None] <= high))
    name_region(axes, x, y, (lead > 0) & clear, "upcycling ahead", (2.4, 1.6))
    name_region(axes, x, y, (lead <= 0) & clear, "scratch ahead", (2.4, 1.6))
