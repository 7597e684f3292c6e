"""What to do with the laws: upcycle or train from scratch, up to how many tokens, and how far that can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upcycle.decisions.allocation import UpcycledBands, upcycled_bands
from upcycle.decisions.curves import ThreeLaws, central_95, from_fits
from upcycle.decisions.thresholds import OTHER, WORDS, Ahead, Threshold, d_star, threshold_d2, threshold_flops
from upcycle.errors import UserError
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import number
from upcycle.paper.three_laws import with_few_draws
from upcycle.study.spec import short_count

FAR = 100.0
"""A crossing more than this factor beyond the data's tokens is no answer, and is left out."""
WITHIN = "within"
"""Of what lies within the data."""


def decisions(inputs: Inputs) -> dict[str, Any] | None:
    """The section's content: `missing`, one sentence on the fit that lacks, or sentences and a table.

    None for a study without any fit, whose report has no laws to decide by.
    """
    if not inputs.fits:
        return None
    try:
        three = with_few_draws(from_fits(inputs.fits, "this study"))
        three.need("moe")
    except UserError as error:
        return {"missing": f"These fits do not tell up to how many tokens upcycling pays: {error}."}
    rows = [_row(three, size, d1) for size, d1 in _fitted(inputs, three)]
    return {
        "missing": "",
        "sentences": _sentences(three, rows[-1]),
        "columns": _columns(three),
        "rows": [_cells(row) for row in rows],
        "far": f"{FAR:g}",
        "notes": list(three.notes),
    }


@dataclass(frozen=True)
class _Crossing:
    """A threshold's roots near the data, of the central estimate and of the draws."""

    roots: tuple[float, ...]
    below: Ahead
    band: tuple[float, float] | None
    none: float
    """Share of the draws without a root near the data; NaN without draws."""
    outside: Mapping[str, float]
    """Distance of the first root to the data in natural logarithms; empty without one."""


@dataclass(frozen=True)
class _Row:
    """What the laws say of one size, with the largest D1 that was upcycled at it."""

    size: float
    d1: float
    equal: _Crossing
    sunk: _Crossing
    paid: _Crossing
    optimum: UpcycledBands | None


def _fitted(inputs: Inputs, three: ThreeLaws) -> list[tuple[float, float]]:
    """Dense sizes of the upcycled models fitted, ascending, each with the largest D1 that it was upcycled from."""
    ids = {run_id for fit in inputs.fits.values() if fit.law == three.upcycled.law.name for run_id in fit.ids}
    rows = inputs.losses[inputs.losses["id"].isin(ids) & (inputs.losses["lineage"] == "up")]
    if rows.empty:
        raise UserError("losses.csv has none of the upcycled runs that the laws were fitted to: fit again")
    largest = rows.groupby("N1")["D1"].max()
    return [(float(size), float(d1)) for size, d1 in zip(largest.index, largest, strict=True)]


def _row(three: ThreeLaws, size: float, d1: float) -> _Row:
    return _Row(
        size,
        d1,
        equal=_near(three, d_star(three, size)),
        sunk=_near(three, threshold_d2(three, size, d1)),
        paid=_near(three, threshold_flops(three, size, d1, sunk=False)),
        optimum=upcycled_bands(three, d1, size) if three.upcycled.depends_on_size else None,
    )


def _near(three: ThreeLaws, threshold: Threshold) -> _Crossing:
    low, high = three.upcycled.box["D2"]
    low, high = low / FAR, high * FAR
    roots, *draws = (tuple(root for root in each if low < root < high) for each in (threshold.roots, *threshold.draws))
    firsts = [each[0] for each in draws if each]
    return _Crossing(
        roots,
        threshold.ahead(low),
        central_95(firsts) if firsts else None,
        1 - len(firsts) / len(draws) if draws else math.nan,
        threshold.outside if roots and roots[0] == threshold.roots[0] else {},
    )


def _columns(three: ThreeLaws) -> list[str]:
    optimum = ["compute-optimal D2"] if three.upcycled.depends_on_size else []
    return ["N1", "D* (D1 = D2)", "D* off the data", "D1", "D2, dense cost sunk", "D2, dense cost paid", *optimum]


def _cells(row: _Row) -> list[str]:
    """The row's text, a cell a column of `_columns`."""
    cells = [short_count(row.size), _cell(row.equal), _far(row.equal.outside) if row.equal.roots else "–"]
    cells += [short_count(row.d1), _cell(row.sunk), _cell(row.paid)]
    if row.optimum is not None:
        missing = math.isnan(row.optimum.d2)
        cells.append("none" if missing else f"{short_count(row.optimum.d2)}{_band(row.optimum.d2_band)}")
    return cells


def _cell(crossing: _Crossing) -> str:
    """The first root with its band, and who is ahead below it where that is not upcycling; or who always is."""
    if not crossing.roots:
        return f"none: {WORDS[crossing.below]}"
    above = ", upcycling above" if crossing.below == "scratch" else ""
    return f"{short_count(crossing.roots[0])}{_band(crossing.band)}{above}"


def _sentences(three: ThreeLaws, row: _Row) -> list[str]:
    """Short sentences on the largest size fitted, the most useful first."""
    found = [
        f"Given a dense model of {short_count(row.size)} parameters that has seen {short_count(row.d1)} tokens, and D2 "
        f"tokens to train the mixture ({three.n_expert} experts, top-{three.top_k}) on: {_who('D2', row.sunk)}.",
        f"If training from scratch gets the dense model's FLOPs too: {_who('D2', row.paid)}.",
        f"With as many tokens of the mixture as the dense model has seen, D1 = D2: {_who('D*', row.equal)}.",
    ]
    if row.optimum is not None:
        found.append(_optimum_words(row.optimum))
    crossings = {"D*": row.equal, "D2, dense cost sunk": row.sunk, "D2, dense cost paid": row.paid}
    far = [f"{name} ({_far(each.outside)})" for name, each in crossings.items() if _far(each.outside) != WITHIN]
    if far:
        found.append(f"Outside the data, and so less sure than the intervals say: {'; '.join(far)}.")
    elif any(each.roots for each in crossings.values()):
        found.append("These crossings lie within the range of the data.")
    return found


def _who(symbol: str, crossing: _Crossing) -> str:
    """Who is ahead where, in words, with the share of the draws that see it otherwise."""
    below, roots = WORDS[crossing.below], crossing.roots
    if not roots:
        agree = "" if math.isnan(crossing.none) else f" (no crossing in {crossing.none:.0%} of the draws either)"
        return f"{below} is ahead at every {symbol} near the data{agree}"
    words = f"{below} is ahead below {symbol} = {short_count(roots[0])}{_band(crossing.band)} tokens, "
    words += f"{WORDS[OTHER[crossing.below]]} above"
    if len(roots) > 1:
        words += f" and until {short_count(roots[1])}"
    return words + (f" (no crossing in {crossing.none:.0%} of the draws)" if crossing.none > 0 else "")


def _optimum_words(optimum: UpcycledBands) -> str:
    if math.isnan(optimum.d2):
        return "From this D1 there is no compute-optimal upcycling: by these laws more upcycled tokens gain nothing."
    exponent = number(optimum.exponent)
    if optimum.exponent_band:
        exponent += " [{}, {}]".format(*map(number, optimum.exponent_band))
    return (
        f"The compute-optimal D2 for this size and D1 is {short_count(optimum.d2)}{_band(optimum.d2_band)} tokens; "
        f"with the size it grows as N1 to the power of {exponent}."
    )


def _band(band: tuple[float, float] | None) -> str:
    return f" [{short_count(band[0])}, {short_count(band[1])}]" if band else ""


def _far(outside: Mapping[str, float]) -> str:
    """How far outside the data: the factor of each input."""
    factors = [f"{name} ×{number(math.exp(distance), 2)}" for name, distance in outside.items() if distance > 0]
    return ", ".join(factors) or WITHIN
