"""Figure of a study that begins with a finished dense model: the mixture against the dense model trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from upcycle.decisions.advice.measured import Arm, Rivals, find_rivals
from upcycle.errors import UserError
from upcycle.laws.terms import Array
from upcycle.paper import style
from upcycle.paper.inputs import Inputs

MIXTURES = (style.FIT, style.SCRATCH, "#009E73", "#CC79A7")
"""Colours of mixtures, in order; the dense model is black."""


@dataclass(frozen=True)
class _Line:
    """The runs of one arm as the figure shows them."""

    label: str
    arm: Arm
    size: float
    """Parameters that a token uses."""
    colour: style.Colour
    marker: str


def continued(inputs: Inputs, sweep: str | None = None) -> Figure:
    """Upcycling against training the dense model on.

    Held-out loss of finished models that begin with one dense model: upcycled mixtures, and the dense model trained on.
    Left: against the tokens D2 since then. Right: against their cost, 6 N D2 FLOPs, N the parameters that a token uses;
    the mixture pays more for a token. Each seed is a point. Lines: the laws in D2 that the study fitted; without a law,
    through the mean losses. Dashed: the dense model as it is.

    Raises `UserError` where no dense model was both upcycled and trained on.
    """
    grid = inputs.grid(sweep)
    found = [each for each in find_rivals(inputs.losses, inputs.fits) if each.model == grid.model]
    found = [each for each in found if each.d1 == grid.D1[-1]]
    if not found:
        raise UserError(f"no dense model of sweep `{grid.sweep}` was trained on: add a sweep of kind `continued`")
    figure = style.new_figure(style.PAGE, 2.8, mark=inputs.mark)
    left, right = figure.subplots(1, 2, sharey=True)
    lines, parent = _lines(found), found[0].parent_loss
    for axes, costs in ((left, False), (right, True)):
        for line in lines:
            _draw(axes, line, costs=costs)
        if parent is not None:
            axes.axhline(parent, color=style.GREY, linestyle="--", linewidth=0.9, gid="dense model")
    style.loss_axis(left)
    right.tick_params(labelleft=True)
    tokens, flops = ([cost for line in lines for cost in _costs(line, costs)] for costs in (False, True))
    style.token_axis(left, tokens, "tokens since the dense model, $D_2$")
    style.token_axis(right, flops, "FLOPs since the dense model, $6 N D_2$", apart=0.2)
    right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.1e}".replace("e+", "e")))
    labels = [(line.label, float(_curve(line)[1][-1]), line.colour) for line in lines]
    labels += [] if parent is None else [("dense, as it is", parent, style.GREY)]
    style.name_ends(right, labels)
    return figure


def _lines(found: Sequence[Rivals]) -> list[_Line]:
    mixtures = [
        _Line(f"upcycled, ({each.n_expert},{each.top_k})", each.upcycled, each.n2, colour, marker)
        for each, colour, marker in zip(found, MIXTURES, style.MARKERS[1:], strict=False)
    ]
    return [_Line("dense, trained on", found[0].continued, found[0].n1, style.DENSE, style.MARKERS[0]), *mixtures]


def _costs(line: _Line, costs: bool) -> Array:
    """Measured budgets in tokens, or what they cost in FLOPs."""
    return np.array(line.arm.budgets) * (6 * line.size if costs else 1)


def _curve(line: _Line) -> tuple[Array, Array]:
    """Tokens and losses of the arm's law over the measured budgets, or of its mean losses."""
    arm = line.arm
    if arm.curve is None:
        means = arm.rows.groupby("D")["loss"].mean()
        return means.index.to_numpy(float), means.to_numpy(float)
    tokens = np.geomspace(arm.budgets[0], arm.budgets[-1], 60)
    row = arm.rows.iloc[0]
    return tokens, arm.curve.loss(D=tokens, D2=tokens, D1=float(row["D1"]), N1=float(row["N1"]))


def _draw(axes: Axes, line: _Line, *, costs: bool) -> None:
    unit = 6 * line.size if costs else 1
    tokens, losses = _curve(line)
    axes.plot(tokens * unit, losses, color=line.colour)
    rows = line.arm.rows
    style.points(axes, rows["D"] * unit, rows["loss"], line.colour, line.marker)
