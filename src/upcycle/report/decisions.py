"""When to upcycle by the study's own laws: up to how many tokens, and how far the answer can be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from upcycle.decisions.allocation import UpcycledBands, upcycled_bands
from upcycle.decisions.curves import PLURALS, ThreeLaws
from upcycle.decisions.quantities import percent
from upcycle.decisions.thresholds import NEAR, OTHER, WORDS, Threshold, d_star, threshold_d2, threshold_flops
from upcycle.errors import UserError
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import number
from upcycle.paper.three_laws import three_laws
from upcycle.report.laws import predicts_inside
from upcycle.study.spec import short_count

UNUSED = f"The law of {PLURALS['dense']} is"
"""How the note on a law begins that no threshold uses."""
SETTLED = 0.95
"""Share of the draws without a crossing from which on "no crossing" is settled."""


def decisions(inputs: Inputs) -> dict[str, Any] | None:
    """The section's content: `missing`, one sentence on the fit that is missing, or sentences and a table.

    None for a study without any fit, whose report has no laws to decide by, and for one that begins with a checkpoint
    or trains its dense model on, and has nothing from scratch: thresholds are no question of its.
    """
    losses = inputs.losses
    other = (losses["role"] == "imported").any() or (losses["lineage"] == "cont").any()
    if not inputs.fits or (other and not (losses["lineage"] == "moe").any()):
        return None
    try:
        three = three_laws(inputs)
        three.need("moe")
    except UserError as error:
        return {"missing": f"These fits do not give a threshold: {error}"}
    if few := _too_few(inputs, three):
        return {"missing": f"There are too few losses for a threshold. {few}"}
    rows = [_row(three, size, d1) for size, d1 in _fitted(inputs, three)]
    return {
        "missing": "",
        "sentences": _sentences(three, rows[-1]),
        "rows": [_cells(row) for row in rows],
        "far": f"{NEAR:g}",
        "notes": [*(note for note in three.notes if not note.startswith(UNUSED)), *_inside(inputs, three)],
    }


def _inside(inputs: Inputs, three: ThreeLaws) -> list[str]:
    """Of the laws used that are not identifiable, those whose predictions inside the data are reliable all the same."""
    return [
        f"Law of fit `{name}`: {reliable[0].lower()}{reliable[1:]}"
        for name in three.fits
        if not inputs.fits[name].identifiable and (reliable := predicts_inside(inputs, inputs.fits[name]))
    ]


def _too_few(inputs: Inputs, three: ThreeLaws) -> str:
    """Which of the laws has too few points for a leave-one-out error, in words; nothing if none has."""
    singles = [fit for fit in inputs.fits.values() if fit.by is None]
    grouped = [fit for fit in inputs.fits.values() if fit.by == "lineage"]
    groups = [group for fit in grouped for group in fit.group_fits.values()]
    # A law with as many parameters as points predicts anything: its crossings must not be shown as an answer.
    for curve, lineage in ((three.upcycled, "up"), (three.need("moe"), "moe")):
        fits = [fit for fit in (*singles, *groups) if fit.law == curve.law.name and fit.lineage in (None, lineage)]
        if fits and all(fit.loo_rms is None for fit in fits):
            return f"The law of {PLURALS['upcycled' if lineage == 'up' else lineage]} is {fits[0].statement}"
    return ""


@dataclass(frozen=True)
class _Row:
    """Thresholds of one size, with the largest D1 that was upcycled at it."""

    size: float
    d1: float
    equal: Threshold
    sunk: Threshold
    paid: Threshold
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
        equal=d_star(three, size),
        sunk=threshold_d2(three, size, d1),
        paid=threshold_flops(three, size, d1),
        optimum=upcycled_bands(three, d1, size) if three.upcycled.depends_on_size else None,
    )


def _cells(row: _Row) -> dict[str, str]:
    """The row's text by column."""
    beyond = _far(row.equal.outside) if row.equal.roots else "–"
    cells = {"N1": short_count(row.size), "D* (D1 = D2)": _cell(row.equal), "D* beyond the data": beyond}
    cells |= {"D1": short_count(row.d1), "D2, dense cost sunk": _cell(row.sunk), "D2, dense cost paid": _cell(row.paid)}
    if row.optimum is not None:
        missing = math.isnan(row.optimum.d2)
        band = _band(row.optimum.d2_band)
        cells["compute-optimal D2"] = "none" if missing else short_count(row.optimum.d2) + band
    return cells


def _cell(crossing: Threshold) -> str:
    """The reported root with its band and the others, and who is ahead above it where that is not scratch.

    Without a root, who is always ahead.
    """
    if crossing.root is None:
        return f"none: {WORDS[crossing.below]}"
    others = [short_count(root) for root in crossing.roots if root != crossing.root]
    also = f"; also {', '.join(others)}" if others else ""
    above = ", upcycling above" if crossing.ahead(crossing.root) == "scratch" else ""
    return f"{short_count(crossing.root)}{_band(crossing.band)}{above}{also}"


def _sentences(three: ThreeLaws, row: _Row) -> list[str]:
    """Short sentences on the largest size fitted, the most useful first."""
    sunk, paid = _who("D2", row.sunk), _who("D2", row.paid)
    found = [
        f"Dense cost sunk: given a dense model of {short_count(row.size)} parameters trained on {short_count(row.d1)} "
        f"tokens, and D2 tokens for the mixture ({three.n_expert} experts, top-{three.top_k}), {sunk}.",
        f"Dense cost paid: if training from scratch also gets the dense model's FLOPs, {paid}.",
        f"D1 = D2: with as many tokens for the mixture as the dense model has seen, {_who('D*', row.equal)}.",
    ]
    if row.optimum is not None:
        found.append(_optimum_words(row.optimum))
    crossings = {"D*": row.equal, "D2 with the dense cost sunk": row.sunk, "D2 with the dense cost paid": row.paid}
    present = {name: each for name, each in crossings.items() if each.root is not None}
    far = {name: max(each.outside.values(), default=0.0) for name, each in present.items()}
    beyond = [f"{name} lies {number(math.exp(far[name]), 2)} times beyond the data" for name in far if far[name] > 0]
    if beyond:
        found.append(f"{'; '.join(beyond)}: trust it less than its interval suggests.")
    elif present:
        found.append("These crossings lie within the range of the data.")
    return found


def _who(symbol: str, crossing: Threshold) -> str:
    """Who is ahead where, which of several crossings is reported, and the share of the draws without any."""
    none, root = crossing.shares.get("none", 0.0), crossing.root
    if root is None:
        words = f"{WORDS[crossing.below]} is ahead at every {symbol} near the data"
        if crossing.draws and none < SETTLED:
            words += f" by the central estimate (not settled: {percent(1 - none)} of the draws have a crossing)"
        return words
    place, count = crossing.roots.index(root), len(crossing.roots)
    start = f"from {short_count(crossing.roots[place - 1])} to" if place > 0 else "below"
    end = f"from there to {short_count(crossing.roots[place + 1])}" if place + 1 < count else "above"
    below = crossing.ahead(root)
    words = f"{WORDS[below]} is ahead {start} {symbol} = {short_count(root)}{_band(crossing.band)} tokens and "
    words += f"{WORDS[OTHER[below]]} {end}"
    remarks = [f"of {count} crossings the one nearest the data is reported"] if count > 1 else []
    remarks += [f"{percent(none)} of the draws have no crossing"] if none > 0 else []
    return words + (f" ({'; '.join(remarks)})" if remarks else "")


def _optimum_words(optimum: UpcycledBands) -> str:
    if math.isnan(optimum.d2):
        return "There is no compute-optimal D2 from this D1: by these laws more upcycled tokens gain nothing."
    exponent = number(optimum.exponent)
    if optimum.exponent_band:
        exponent += " [{}, {}]".format(*map(number, optimum.exponent_band))
    return (
        f"The compute-optimal D2 for this size and D1 is {short_count(optimum.d2)}{_band(optimum.d2_band)} tokens; it "
        f"grows as N1 to the power {exponent}."
    )


def _band(band: tuple[float, float] | None) -> str:
    return f" [{short_count(band[0])}, {short_count(band[1])}]" if band else ""


def _far(outside: Mapping[str, float]) -> str:
    """How far beyond the data: the factor of each input."""
    factors = [f"{name} ×{number(math.exp(distance), 2)}" for name, distance in outside.items() if distance > 0]
    return ", ".join(factors) or "within"
