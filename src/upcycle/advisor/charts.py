"""The charts of the advisor page as Bokeh documents: axes, marks and tooltips. advisor.js fills their columns."""

from __future__ import annotations

from typing import Any

from bokeh.embed import json_item
from bokeh.models import (
    BoxAnnotation,
    ColumnDataSource,
    CustomJS,
    HoverTool,
    NumeralTickFormatter,
    Range1d,
    Span,
    TapTool,
)
from bokeh.models.formatters import CustomJSTickFormatter
from bokeh.plotting import figure

COLORS = {"upcycle": "#1f6fb8", "scratch": "#c75b00", "dense": "#5d6b2f"}
"""Of an option, in every chart and table of the page."""
FULL = {"upcycle": "#4c8cc6", "scratch": "#d27c33", "dense": "#7d8858"}
PALE = {"upcycle": "#c7dcee", "scratch": "#f3d7b9", "dense": "#dce1ca"}
"""On the map: where the draws settle who wins, and where they do not."""
DASHES = {"upcycle": "solid", "scratch": "dashed", "dense": "dotdash"}
MARKERS = {"upcycled": "circle", "moe": "square", "dense": "triangle"}
"""Of a measured loss, by its law."""
INK = "#222222"
"""Of what is no option. The page inverts charts in dark mode."""

SHORT = """
const size = Math.abs(tick)
for (const [scale, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
  if (size >= scale * 0.9995 && size < 1e15) return Number((tick / scale).toPrecision(3)) + letter
return size >= 1e15 || size < 1e-2 ? tick.toExponential(0).replace("+", "") : String(Number(tick.toPrecision(3)))
"""
"""Ticks as the page writes numbers."""


def charts() -> dict[str, Any]:
    """Bokeh's JSON of each chart, by the id of its place on the page."""
    found = {"curves": curve_chart(), "map": winner_chart(), "residuals": residual_chart()}
    return {place: json_item(chart, place) for place, chart in found.items()}


def curve_chart() -> figure:
    """Expected loss over the budget of the three options, with bands, measured losses, the setting and the flip."""
    chart = _chart("curves", "budget (tokens)", "loss (nats per token)", height=360, x_axis_type="log")
    names = [f"{option}{part}" for option in COLORS for part in ("", "_low", "_high")]
    lines = ColumnDataSource({name: [] for name in ("x", *names)}, name="curves-lines")
    for option, color in COLORS.items():
        chart.varea("x", f"{option}_low", f"{option}_high", source=lines, fill_color=color, fill_alpha=0.16)
    for option, color in COLORS.items():
        chart.line("x", option, source=lines, color=color, line_width=2.5, line_dash=DASHES[option])
    _data_frame(chart, "curves-frame")
    _span(chart, "curves-budget", "solid", 1.5)
    _span(chart, "curves-flip", "dotted", 2.5)
    _points(chart, "curves-points", [("loss", "@y{0.0000}"), ("by the law", "@law"), ("budget", "@budget")])
    return chart


def winner_chart() -> figure:
    """Who has the least expected loss over (D1, D2), with the frame of the data, the setting and D*."""
    chart = _chart("map", "D1, tokens of the dense model", "D2, tokens of the mixture", height=400, x_axis_type="log",
                   y_axis_type="log")  # fmt: skip
    names = ("left", "right", "bottom", "top", "color", "who", "lead", "share", "D1", "D2")
    cells = ColumnDataSource({name: [] for name in names}, name="map-cells")
    area = chart.quad("left", "right", "bottom", "top", source=cells, color="color", level="underlay")
    area.nonselection_glyph = None
    said = [("least loss", "@who"), ("ahead by", "@lead"), ("share of draws", "@share"), ("D1", "@D1"), ("D2", "@D2")]
    _data_frame(chart, "map-frame")
    marks = _points(chart, "map-points", [("loss", "@loss{0.0000}"), ("by the law", "@law"), ("D1, D2", "@D1, @D2")])
    alone = CustomJS(args={"marks": marks}, code="return marks.inspected.indices.length === 0")
    chart.add_tools(HoverTool(renderers=[area], tooltips=said, filters={"@who": alone}))  # a mark's tooltip comes first
    for name, marker, size in (("map-setting", "x", 15), ("map-dstar", "star", 17)):
        place = ColumnDataSource({"x": [], "y": []}, name=name)
        look = chart.scatter("x", "y", source=place, marker=marker, size=size, color=INK, fill_color="white")
        look.glyph.update(line_width=2.5, name=f"{name}-look")
    return chart


def residual_chart() -> figure:
    """Every measured loss against what its law says at the same inputs."""
    chart = _chart("residuals", "loss by the law (nats)", "measured minus law (nats)", height=300)
    chart.xaxis.formatter = NumeralTickFormatter(format="0.[000]")
    chart.yaxis.formatter = NumeralTickFormatter(format="0.[000]")
    chart.add_layout(Span(location=0, dimension="width", line_color=INK, line_width=1))
    _points(chart, "residuals-points", [("loss", "@loss{0.0000}"), ("minus law", "@y{+0.0000}")])
    return chart


def _chart(name: str, x: str, y: str, **options: Any) -> figure:
    """A chart as wide as the page, without tools that would catch a finger that scrolls."""
    chart = figure(
        name=name,
        x_axis_label=x,
        y_axis_label=y,
        x_range=Range1d(1, 10, name=f"{name}-x"),
        y_range=Range1d(1, 10, name=f"{name}-y"),
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools=[],
        background_fill_color=None,
        border_fill_color=None,
        outline_line_color=None,
        min_border_right=12,
        output_backend="canvas",
        **options,
    )
    for axis in (*chart.xaxis, *chart.yaxis):
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_color = axis.major_label_text_color = axis.axis_line_color = INK
    for axis, kind in ((chart.xaxis, "x_axis_type"), (chart.yaxis, "y_axis_type")):
        if options.get(kind) == "log":
            axis.formatter = CustomJSTickFormatter(code=SHORT)
            axis.ticker.desired_num_ticks = 5
    chart.grid.grid_line_color = "#88888833"
    return chart


def _data_frame(chart: figure, name: str) -> None:
    """The range of the data: a dashed frame, faintly filled."""
    chart.add_layout(
        BoxAnnotation(
            name=name,
            fill_color="#888888",
            fill_alpha=0.07,
            line_color=INK,
            line_alpha=1,
            line_dash="dashed",
            line_width=2,
        )
    )


def _span(chart: figure, name: str, dash: str, width: float) -> None:
    chart.add_layout(
        Span(name=name, dimension="height", location=None, line_color=INK, line_dash=dash, line_width=width)
    )


NEAREST = """
const { index, indices, sx, sy, glyph_view } = cb_data.vars
const distance = (at) => Math.hypot(glyph_view.sx[at] - sx, glyph_view.sy[at] - sy)
const nearest = index === indices.reduce((best, at) => (distance(at) < distance(best) ? at : best))
if (nearest) choosePoint(cb_data.data_source.data.at[index])
return nearest
"""
"""Of the marks under the pointer, the nearest alone has a tooltip; advisor.js shows its run below the charts."""


def _points(chart: figure, name: str, tooltips: list[tuple[str, str]]) -> ColumnDataSource:
    """Measured losses: filled where a law was fitted to them; hover and tap name the run."""
    columns = ("x", "y", "run", "marker", "color", "fill", "alpha", "loss", "law", "budget", "D1", "D2", "at")
    source = ColumnDataSource({column: [] for column in columns}, name=name)
    marks = chart.scatter(
        "x", "y", source=source, marker="marker", size=8, line_color="color", fill_color="fill", alpha="alpha"
    )
    marks.nonselection_glyph = None
    marks.selection_glyph = marks.glyph.clone(size=15, line_width=3, line_alpha=1.0, fill_alpha=1.0)
    hover = HoverTool(
        renderers=[marks], tooltips=[("run", "@run"), *tooltips], filters={"@run": CustomJS(code=NEAREST)}, limit=1
    )
    chart.add_tools(hover, TapTool(renderers=[marks]))
    return source
