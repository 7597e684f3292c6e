"""Each fitted law as a card: formula, parameters with units and intervals, and whether the losses settle them."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from upcycle.laws.result import FitResult
from upcycle.paper.inputs import Inputs
from upcycle.paper.render import number
from upcycle.report.sections import KINDS
from upcycle.study.spec import short_count

GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "eta": "η", "delta": "δ"}
_SYMBOL = re.compile(r"\b(alpha|beta|gamma|delta|eta|[A-Z])(\d|_prime)?\b")
_POWER = re.compile(r"\^(\((?:[^()]|\([^()]*\))*\)|-?\w+)")


def cards(inputs: Inputs) -> list[dict[str, Any]]:
    """One card a fit, in the order of their names as the study gives them."""
    return [_card(name, fit) for name, fit in inputs.fits.items()]


def _card(name: str, fit: FitResult) -> dict[str, Any]:
    return {
        "name": name.replace("_", " "),
        "fit": fit,
        "certificate": _certificate(fit.certificate),
        "rows": _rows(fit.parameters, fit.intervals, fit.fixed) + _rows(fit.derived, fit.intervals, {}),
        "groups": _groups(fit),
        "relations": [
            (relation, _rows(relation["parameters"], relation["intervals"], {}))
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
