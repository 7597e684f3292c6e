"""One look for every figure: sizes, colours, tick labels, deterministic files.

Colours are safe for colour-blind readers and keep their order in grey: a truncated viridis for ordered values
(light: few dense tokens, dark: many), Okabe and Ito's for kinds of training. Ordered curves carry markers too.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from typing import Any, Literal, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from upcycle.study.spec import short_count

COLUMN = 3.25
"""Width of one column of the paper, inches."""
PAGE = 6.75
"""Width of its text, inches."""

DENSE = "#000000"
SCRATCH = "#D55E00"
FIT = "#0072B2"
MARK = "#B00020"
GREY = "#6B6B6B"
Colour = str | tuple[float, float, float, float]
Value = TypeVar("Value", bound=float)
RIM: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}
"""Keeps markers apart where they crowd."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*")

FONTS = "'DejaVu Sans', Verdana, sans-serif"
"""Fonts of text in SVG."""

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 7.5,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.labelspacing": 0.35,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "figure.constrained_layout.h_pad": 0.03,
    "figure.constrained_layout.w_pad": 0.06,
    "savefig.facecolor": "white",
    # Text as text in SVG, as embedded TrueType in PDF; equal figures give equal bytes.
    "svg.fonttype": "none",
    "svg.hashsalt": "upcycle",
    "pdf.fonttype": 42,
}


def context() -> AbstractContextManager[None]:
    """The settings under which every figure is made and saved."""
    return mpl.rc_context(_SETTINGS)


def sequence(count: int) -> list[tuple[float, float, float, float]]:
    """`count` colours for ordered values, light to dark, all readable on white."""
    # The yellow end of viridis is too pale on white.
    positions = np.linspace(0.80, 0.05, count) if count > 1 else [0.3]
    return [mpl.colormaps["viridis"](position) for position in positions]


def looks(values: Sequence[Value]) -> dict[Value, tuple[Colour, str]]:
    """Colour and marker of each of some ordered values, light to dark; markers repeat after the tenth."""
    return dict(zip(values, zip(sequence(len(values)), cycle(MARKERS), strict=False), strict=True))


def look_handles(shown: Mapping[Value, tuple[Colour, str]], name: Callable[[Value], str], **more: Any) -> list[Line2D]:
    """A legend's entry for each of these looks; `more` are properties of its line."""
    return [Line2D([], [], color=c, marker=m, label=name(value), **more) for value, (c, m) in shown.items()]


def new_figure(width: float, height: float, *, mark: str) -> Figure:
    """An empty figure of this size in inches; losses that are not of our runs are marked above everything else."""
    figure = Figure(figsize=(width, height), layout="constrained")
    if mark:
        figure.suptitle(mark, color=MARK, fontsize=7.5, fontweight="bold")
    return figure


def token_axis(axes: Axes, tokens: Sequence[float], label: str, *, apart: float = 0.11) -> None:
    """Logarithmic x axis of tokens with a tick at each budget (262k, 1.05M), those left out that would touch.

    `apart` is the least distance of two ticks as a share of the axis.
    """
    axes.set_xscale("log")
    budgets = sorted(set(tokens))
    kept = budgets[-1:]  # from the largest down, which is the one that must have a tick
    span = np.log(budgets[-1] / budgets[0]) or 1.0
    for budget in reversed(budgets[:-1]):
        if np.log(kept[-1] / budget) / span > apart:
            kept.append(budget)
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    margin = (budgets[-1] / budgets[0]) ** 0.05 if len(budgets) > 1 else 2.0
    axes.set_xlim(budgets[0] / margin, budgets[-1] * margin)
    axes.set_xlabel(label)


def loss_axis(axes: Axes, label: str = "held-out loss (nats per token)") -> None:
    """Logarithmic y axis of losses with a few round values as ticks."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.set_ylabel(label)


def number_ticks(axes: Axes) -> None:
    """Plain numbers on a logarithmic y axis: 0.5, 20, 3e4; the limits must have been set."""
    low, high = axes.get_ylim()
    # Over less than a decade 1, 2, 5, 10, ... may leave one tick alone, which tells nothing of the scale.
    few = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10])
    axes.yaxis.set_major_locator(few if high < 10 * low else LogLocator(subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}".replace("e+0", "e")))


def frame_values(axes: Axes, values: Sequence[float]) -> None:
    """Limit the y axis to these values and a little more, so that a long error bar does not squeeze the rest."""
    scale, back = (np.log, np.exp) if axes.get_yscale() == "log" else (np.asarray, np.asarray)
    low, high = scale(min(values)), scale(max(values))
    margin = 0.3 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(float(back(low - margin)), float(back(high + margin)))


def relabel(axes: Axes, position: float, text: str) -> None:
    """Give one tick of a token axis a text of its own."""
    plain = axes.xaxis.get_major_formatter()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, at: text if value == position else plain(value, at)))


def points(
    axes: Axes, x: Iterable[float], y: Iterable[float], colour: Colour, marker: str, **more: Any
) -> list[Line2D]:
    """Markers with a thin white rim, so that they stay apart where they crowd; `more` are properties of their line."""
    return axes.plot(list(x), list(y), color=colour, marker=marker, **{"linestyle": "none", **RIM, **more})


def name_ends(axes: Axes, labels: Sequence[tuple[str, float, Colour]], title: str = "") -> None:
    """Names beside a panel, at the heights where its lines end, at least a line of text apart; `title` above them."""
    scale = np.log if axes.get_yscale() == "log" else np.asarray
    low, high = scale(axes.get_ylim())
    line = 7 * 1.25 / 72 / (axes.get_window_extent().height / axes.figure.dpi)
    above = -np.inf
    for name, value, colour in sorted(labels, key=lambda label: label[1]):
        above = max((scale(value) - low) / (high - low), above + line)
        axes.text(1.03, above, name, transform=axes.transAxes, color=colour, va="center", fontsize=7)
    axes.text(1.03, above + line, title, transform=axes.transAxes, va="center", fontsize=7)


def legend_below(figure: FigureBase, handles: Sequence[Artist], title: str | None = None, columns: int = 5) -> None:
    """One legend for all panels, under them, of at most this many columns, all about equally long."""
    ncols = -(-len(handles) // -(-len(handles) // columns))
    figure.legend(handles=list(handles), title=title, loc="outside lower center", ncols=ncols, columnspacing=1)


def in_words(sentence: str, *, mark: str) -> Figure:
    """What a figure is where its panels would show nothing: the reason, which the report prints as a paragraph."""
    figure = new_figure(COLUMN, 1.1, mark=mark)
    figure.set_label(sentence)
    figure.text(0.03, 0.45, textwrap.fill(sentence, 54), va="center", fontsize=8)
    return figure


def encode(figure: Figure, form: Literal["svg", "pdf"]) -> bytes:
    """A figure as the bytes of a file; no date in it, so equal figures give equal bytes.

    An SVG has the figure's label, the sentence of `in_words`, as its description.
    """
    metadata = {"svg": {"Date": None, "Description": figure.get_label() or None}, "pdf": {"CreationDate": None}}[form]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, metadata=metadata, dpi=300)
    # Verdana has nearly the metrics of DejaVu Sans, by which labels were placed.
    return buffer.getvalue().replace(b"'DejaVu Sans'", FONTS.encode()) if form == "svg" else buffer.getvalue()
