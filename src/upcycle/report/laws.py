"""Each fitted law as a card: formula, parameters with units and intervals, and whether the losses settle them."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from upcycle.decisions.curves import from_fits
from upcycle.errors import UserError
from upcycle.laws.result import FitResult
from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.render import number, reasons
from upcycle.report.sections import KINDS
from upcycle.study.spec import short_count

GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "eta": "η", "delta": "δ"}
_SYMBOL = re.compile(r"\b(alpha|beta|gamma|delta|eta|[A-Z])(\d|_prime)?\b")
_POWER = re.compile(r"\^(\((?:[^()]|\([^()]*\))*\)|-?\w+)")


RELIABLE = 2.0
"""Leave-one-out error up to which a law's predictions inside its data are called reliable, in deviations of a seed."""


def cards(inputs: Inputs, grid: Grid) -> list[dict[str, Any]]:
    """One card a fit, in the order of their names as the study gives them; the best law of the grid is open."""
    best, used = best_fit(inputs, grid), deciding(inputs)
    return [
        _card(name, fit) | _verdict(inputs, fit, decides=name in used) | {"best": name == best}
        for name, fit in inputs.fits.items()
    ]


def best_fit(inputs: Inputs, grid: Grid) -> str | None:
    """Name of the law that predicts the grid's left-out losses best, among fits to the grid's mixture alone.

    Of those that are fitted to most of its runs. None without a law that has a leave-one-out error.
    """
    own = set(grid.rows["id"])
    found = {
        name: (-len(own & set(fit.ids)), fit.loo_rms)
        for name, fit in inputs.fits.items()
        if fit.loo_rms is not None and fit.by is None and fit is inputs.fit_or_none(grid, fit.law)
    }
    return min(found, key=lambda name: found[name], default=None)


def deciding(inputs: Inputs) -> tuple[str, ...]:
    """Names of the fits that the section on decisions rests on; none where the fits do not give a threshold."""
    try:
        three = from_fits(inputs.fits, "this study")
        three.need("moe")
    except UserError:
        return ()
    return three.fits


def _verdict(inputs: Inputs, fit: FitResult, *, decides: bool) -> dict[str, str]:
    """What the fit states of itself. `Not identifiable` appears only for fits that decisions use."""
    reliable = predicts_inside(inputs, fit)
    if fit.identifiable:
        return {"badge": "identifiable" if decides else "", "statement": fit.statement, "reliable": reliable}
    if decides:
        return {"badge": "not identifiable", "statement": f"Used for decisions; {fit.statement}", "reliable": reliable}
    return {"badge": "", "statement": f"{reasons(fit.statement)}; no decision uses this law", "reliable": reliable}


def predicts_inside(inputs: Inputs, fit: FitResult) -> str:
    """That predictions inside the data are reliable, by which test; nothing where that is not true or not known."""
    noise = inputs.noise
    if noise is None or fit.loo_rms is None or fit.response != "loss" or fit.loo_rms > RELIABLE * noise.deviation:
        return ""
    return (
        f"Predictions inside the grid are reliable: the leave-one-out error, {number(fit.loo_rms, 2)} nats, is within "
        f"{RELIABLE:g} standard deviations of the noise between seeds ({number(noise.deviation, 2)} nats each)."
    )


def _card(name: str, fit: FitResult) -> dict[str, Any]:
    return {
        "name": name.replace("_", " "),
        "fit": fit,
        "certificate": _certificate(fit.certificate),
        "rows": _rows(fit.parameters, fit.intervals, fit.fixed) + _rows(fit.derived, fit.intervals, {}),
        "groups": _groups(fit),
        "relations": [
            (
                relation | {"statement": reasons(relation["statement"])},
                _rows(relation["parameters"], relation["intervals"], {}),
            )
            for relation in (fit.relations or {}).values()
        ],
    }


def _certificate(certificate: Mapping[str, Any]) -> list[str]:
    """What refits say of the fit, in sentences; only those that were computed."""
    found = []
    if interaction := certificate.get("interaction"):
        found.append(f"Interaction: {interaction['statement']}.")
    for name, entry in certificate.get("profile", {}).items():
        if "interval" in entry:
            low, high = (None if end is None else number(end) for end in entry["interval"])
            ends = f"{low or 'its lower bound'} to {high or 'its upper bound'}"
            found.append(f"95 % interval of {name} by profile likelihood: {ends}.")
    out = [f"{name} {number(e['rms'])}" for name, e in certificate.get("folds", {}).items() if "rms" in e]
    if out:
        found.append(f"Error with all points of one value left out, in nats: {', '.join(out)}.")
    far = [f"{name} {number(e['rms'])}" for name, e in certificate.get("extrapolation", {}).items() if "rms" in e]
    if far:
        found.append(f"Error at the largest value, fitted without it, in nats: {', '.join(far)}.")
    if (aic := certificate.get("aic")) is not None:
        found.append(f"AIC {aic:.1f}, BIC {certificate['bic']:.1f}.".replace("-", "−"))
    return found


def _rows(
    entries: Mapping[str, Mapping[str, Any]],
    intervals: Mapping[str, Sequence[float | None]],
    fixed: Mapping[str, float],
) -> list[dict[str, str]]:
    return [
        {
            "symbol": symbols(name),
            "value": number(entry["value"], 4) or "none",
            "interval": "held fixed" if name in fixed else _interval(intervals.get(name)),
            "unit": "" if entry["unit"] == "1" else entry["unit"],
            "meaning": entry["meaning"],
        }
        for name, entry in entries.items()
    ]


def _interval(bounds: Sequence[float | None] | None) -> str:
    """An interval in words; a bound of None is not finite."""
    if not bounds or bounds[0] is None:
        return "–"
    return f"{number(bounds[0])} to {number(bounds[1])}" if bounds[1] is not None else f"{number(bounds[0])} or more"


def _groups(fit: FitResult) -> list[tuple[str, list[str]]]:
    """One row a group: what its runs have in common, then its parameters with their intervals."""
    rows = []
    for value, group in fit.group_fits.items():
        intervals = {name: f" [{_interval(bounds)}]" for name, bounds in group.intervals.items()}
        cells = [number(each, 4) + intervals.get(name, "") for name, each in group.values.items()]
        rows.append((KINDS[value] if fit.by == "lineage" else short_count(value), cells))
    return rows


def symbols(text: str) -> str:
    """Names of a formula as HTML: alpha1 becomes an alpha with a subscript, ^(...) a superscript."""

    def power(match: re.Match[str]) -> str:
        inside = match.group(1)
        return f"<sup>{inside[1:-1] if inside.startswith('(') else inside}</sup>"

    def symbol(match: re.Match[str]) -> str:
        name, mark = match.groups()
        suffix = "′" if mark == "_prime" else f"<sub>{mark}</sub>" if mark else ""
        return f"<i>{GREEK.get(name, name)}</i>{suffix}"

    if "_" in text.replace("_prime", ""):
        return html.escape(text.replace("_", " "))
    escaped = html.escape(text, quote=False)
    return _SYMBOL.sub(symbol, _POWER.sub(power, escaped)).replace("-", "−")
