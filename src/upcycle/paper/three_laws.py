"""The three laws of a study as its figures use them: found among the fits, draws thinned, and where the data end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from upcycle.decisions.curves import ThreeLaws, from_fits
from upcycle.laws.terms import Array
from upcycle.paper import style
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import number
from upcycle.study.spec import short_count

DRAWS = 200
"""Draws behind a band: enough for its 95 %, few enough to draw in seconds."""
BAND = "95 % of the draws"
DASHED = (0, (3, 1.5))
STAR: dict[str, Any] = {"marker": "*", "color": style.SCRATCH, "markeredgecolor": "black", "markersize": 8}
STAR |= {"markeredgewidth": 0.5, "linestyle": "none"}
"""Marks D*."""
OUTSIDE = "#EFEFEF"
"""Behind what no data support."""


def three_laws(inputs: Inputs) -> ThreeLaws:
    """The laws of dense models, of MoEs from scratch and of upcycled models among a study's fits.

    They have their first draws alone; paired draws stay paired. Raises `UserError` saying which fit is missing.
    """
    three = from_fits(inputs.fits, "this study")
    return replace(
        three,
        dense=three.dense and three.dense.first_draws(DRAWS),
        moe=three.moe and three.moe.first_draws(DRAWS),
        upcycled=three.upcycled.first_draws(DRAWS),
    )


def sizes_of(three: ThreeLaws, sizes: Sequence[float] | None, defaults: Sequence[float]) -> list[float]:
    """Sizes N1 to show: those asked for, else the paper's; where the data are far smaller, multiples of the largest.

    Laws fitted to one size know nothing of others: that size alone.
    """
    if sizes is not None:
        return list(sizes)
    smallest, largest = three.upcycled.box["N1"]
    if smallest == largest:
        return [largest]
    if largest * 10 < defaults[0]:
        return [largest * size / defaults[0] for size in defaults]
    return list(defaults)


def size_is_inside(three: ThreeLaws, size: float) -> bool:
    """Whether upcycled models of sizes about this one were fitted."""
    # Ten per cent of slack: 1e9 and Table 3's 1,085,859,424 are one size to a reader.
    return not any(math.log(1.1) < distance for distance in three.upcycled.outside(N1=size).values())


def tokens_to_show(box: tuple[float, float]) -> list[float]:
    """A few numbers of tokens over the data's range and one beyond; powers of ten where the range is wide."""
    low, high = box
    if high >= 100 * low:
        last = math.ceil(math.log10(high))
        return [10.0**power for power in range(last - 2, last + 2)]
    step = math.sqrt(high / low) if high > low else 2.0
    return [low * step**k for k in range(4)]


def pointwise_band(draws_BN: Array) -> tuple[Array, Array]:
    """The central 95 % of the draws, point by point."""
    low_N, high_N = np.quantile(draws_BN, [0.025, 0.975], axis=0)
    return low_N, high_N


def count_axis(axes: Axes, which: Literal["x", "y"], label: str, *, most: int = 7, between: bool = False) -> None:
    """A logarithmic axis of tokens or parameters, ticks at powers of ten (and `between`) written 100M, 1B, 10B."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if between else (1,), numticks=most))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    axis.set_label_text(label)


def data_box(x: tuple[float, float], y: tuple[float, float], **look: Any) -> Rectangle:
    """The range of the data as a patch."""
    return Rectangle((x[0], y[0]), x[1] - x[0], y[1] - y[0], **look)


def solid_inside(
    axes: Axes, x: Array, y: Array, inside: NDArray[np.bool_], colour: style.Colour, width: float, **more: Any
) -> None:
    """A line that is solid where `inside` holds and dashed elsewhere."""
    axes.plot(x, y, color=colour, linewidth=width, linestyle=DASHED, **more)
    axes.plot(x, np.where(inside, y, np.nan), color=colour, linewidth=width)


def size_words(three: ThreeLaws, size: float) -> str:
    """A size as a panel's title, and how far it lies outside the sizes fitted."""
    low, high = three.upcycled.box["N1"]
    name = f"$N_1$ = {short_count(size)}"
    if size_is_inside(three, size):
        return f"{name}\nwithin the sizes fitted" if low < high else f"{name}\nthe size fitted"
    if size > high:
        return f"{name}\n{number(size / high, 2)} times the largest fitted"
    return f"{name}\n1/{number(low / size, 2)} of the smallest fitted"


def clear_of(
    x: Array, y: Array, lines: Sequence[tuple[Array, Array]], at_x: Sequence[float] = (), at_y: Sequence[float] = ()
) -> NDArray[np.bool_]:
    """Cells [y, x] of a log-spaced grid through which no line (y over ascending x), nor edge at these x and y, runs."""
    clear = np.ones((len(y), len(x)), dtype=bool)
    for line_x, line_y in lines:
        log_y = np.interp(np.log(x), np.log(line_x), np.log(line_y), left=np.nan, right=np.nan)
        rows = np.interp(log_y, np.log(y), np.arange(len(y)), left=np.nan, right=np.nan)
        # A steep line crosses several rows within one column: all of them are taken.
        for column, (here, after) in enumerate(zip(rows, [*rows[1:], rows[-1]], strict=True)):
            if np.isfinite(here):
                ends = sorted((here, after if np.isfinite(after) else here))
                clear[math.floor(ends[0]) : math.ceil(ends[1]) + 1, column] = False
    for edge in at_x:
        clear[:, np.abs(np.log(x / edge)).argmin()] = False
    for edge in at_y:
        clear[np.abs(np.log(y / edge)).argmin()] = False
    return clear


def name_region(
    axes: Axes, x: Array, y: Array, region: NDArray[np.bool_], text: str, panel: tuple[float, float]
) -> None:
    """A word where a region [y, x] of a log-spaced grid has most room for it; none where it has too little.

    `panel`: about the panel's width and height in inches.
    """
    step = panel[1] / len(y), panel[0] / len(x)
    # Height of a line and mean width of a bold letter of 8 points, in inches.
    word = math.ceil(0.17 / step[0]), math.ceil(0.078 * len(text) / step[1])
    # Cells around which the whole word lies in the region; of these the one farthest from its edge.
    fits = binary_erosion(region, np.ones(word, dtype=bool))
    if fits.any():
        room = np.where(fits, distance_transform_edt(np.pad(region, 1), sampling=step)[1:-1, 1:-1], 0)
        row, column = np.unravel_index(int(room.argmax()), room.shape)
        axes.text(x[column], y[row], text, ha="center", va="center", fontsize=8, fontweight="bold")
