"""Panels of predicted against measured losses, and predictions of losses that were left out of a fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from upcycle.laws.forms import get_law
from upcycle.laws.result import FitResult
from upcycle.laws.solver.prepare import prepare
from upcycle.laws.solver.search import search
from upcycle.laws.tables.losses import law_columns
from upcycle.laws.terms import Array
from upcycle.paper import style


def predicted(fit: FitResult, rows: pd.DataFrame) -> Array:
    """Losses [N] that a fit predicts for rows of losses.csv, nats."""
    law = get_law(fit.law)
    return law.predict(fit.values, law_columns(rows, law.inputs))


def extrapolated(fit: FitResult, rows: pd.DataFrame, held_out: NDArray[np.bool_]) -> Array | None:
    """Losses [held out] that the law predicts when fitted without these rows; None where too few would be left.

    Parameters that the fit holds (such as E of a two-step fit) are held here too.
    """
    law = get_law(fit.law)
    rest = rows[~held_out]
    if not held_out.any() or len(rest) <= len(set(law.names) - set(fit.fixed)):
        return None
    # Fitted here, not read from a file: what is left out is this figure's choice, and one fit takes a moment.
    prepared = prepare(law, law_columns(rest, [*law.inputs, law.response]), fit.fixed)
    if prepared.confounded:  # the rows that are left do not vary in what the law depends on
        return None
    values = dict(fit.fixed)
    found = prepared.values(search(prepared).phi_R[None])[0].tolist()
    values |= {slot.parameter.name: value for slot, value in zip(prepared.slots, found, strict=True)}
    return law.predict(values, law_columns(rows[held_out], law.inputs))


def most_tokens(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Rows with the most dense or the most upcycled tokens of their size [N]; none where a size has one budget."""
    groups = rows.groupby("N1")
    most = pd.Series(False, index=rows.index)
    for name in ("D1", "D2"):
        most |= (rows[name] == groups[name].transform("max")) & (groups[name].transform("nunique") > 1)
    return most.to_numpy()


def rows_of_largest_size(rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Rows of the largest size [N]; none where there is one size alone."""
    largest = rows["N1"] == rows["N1"].max()
    return (largest & (rows["N1"].nunique() > 1)).to_numpy()


def rms(error_N: Array) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(error_N))))


def square(axes: Axes, measured: Sequence[float], predictions: Sequence[float]) -> None:
    """Equal axes of measured and predicted loss with the diagonal on which both agree."""
    low, high = min(*measured, *predictions), max(*measured, *predictions)
    margin = 0.05 * (high - low) or 0.05
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=style.GREY, linewidth=0.8, zorder=1)
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(round_ticks())
    axes.set_xlabel("measured loss (nats per token)")
    axes.set_ylabel("predicted loss (nats per token)")


def round_ticks() -> MaxNLocator:
    """A few ticks at round numbers."""
    return MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
