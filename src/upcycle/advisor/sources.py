"""Where the constants of the advisor page are from: the paper's Table 2, studies, folders of fits.

D, D1, D2 in tokens, N1 in non-embedding parameters, losses in nats. Shape suffix: B draws.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from upcycle.decisions.advice.advice import error_of
from upcycle.decisions.advice.expectations import SURE
from upcycle.decisions.curves import Curve, Mixture, ThreeLaws, from_fits, mixture_of, moe_mixtures, published
from upcycle.decisions.published import PAPER_ERROR
from upcycle.files import plain
from upcycle.laws.forms import get_law
from upcycle.laws.law import Law
from upcycle.laws.result import FitResult
from upcycle.laws.terms import Array
from upcycle.study.formulas import read_formula
from upcycle.study.spec import EXPAND, short_count

PRINTED = "Liew, Kato, Takase, Scaling Laws for Upcycling Mixture-of-Experts Language Models (ICML 2025), Table 2"
NO_POINTS = "The paper prints no losses, so there are no points to show."
MEANINGS = {
    "SIMULATED LOSSES": "a formula made them, and nothing was measured.",
    "IMPORTED LOSSES": "they are read from files, and the runs were not trained in this results folder.",
}
"""Of the marks of losses that are not of a study's own runs."""
FITS_ALONE = "A folder of fits holds no losses: `upcycle page --study NAME` shows a study's."


@dataclass(frozen=True)
class Constants:
    """One origin of constants, with the losses that they were fitted to."""

    name: str
    """A few words, for a list to choose from."""
    statement: str
    """What the constants are, in a sentence."""
    mixtures: tuple[ThreeLaws, ...]
    """The laws of each mixture, those that `upcycle advise` takes first."""
    law_error: tuple[float | None, ...]
    """Of each mixture: error of a predicted loss in nats."""
    left_out: str = ""
    """Which mixtures have upcycled losses and no law from scratch, in words."""
    losses: pd.DataFrame | None = None
    """losses.csv, of finished models."""
    no_points: str = ""
    """Why there are no losses."""
    mark: str = ""
    """What must stand above simulated and imported losses."""


def paper_source() -> Constants:
    """The parameters that the paper prints, with draws within their rounding, as `upcycle advise` takes them."""
    statement = f"Constants as printed in {PRINTED}; the draws are uniform within the rounding of its digits."
    return Constants("the paper's Table 2", statement, (published(),), (PAPER_ERROR,), no_points=NO_POINTS)


def fitted_source(
    name: str, fits: Mapping[str, FitResult], *, losses: pd.DataFrame | None = None, mark: str = ""
) -> Constants:
    """The laws of fits, of every mixture that has one of upcycled models and one of models from scratch.

    Raises `UserError` as `from_fits`, and for fits without a law of MoEs from scratch.
    """
    first = from_fits(fits, name)
    first.need("moe")
    found, without = {(first.n_expert, first.top_k): first}, []
    for mixture in sorted({other for fit in fits.values() if (other := mixture_of(fit))} - set(found)):
        of_mixture = {key: fit for key, fit in fits.items() if _belongs(fit, mixture)}
        if any(get_law(fit.law).decides == "upcycled" for fit in of_mixture.values()):
            if mixture in moe_mixtures(of_mixture):
                found[mixture] = from_fits(of_mixture, name)
            else:
                without.append("{}x{}".format(*mixture))
    statement = f"Constants of {name}: fits to measured losses; the draws are bootstrap draws of the fits."
    return Constants(
        name,
        statement if mark != "SIMULATED LOSSES" else statement.replace("measured", "simulated"),
        tuple(found.values()),
        tuple(error_of(fits, three) for three in found.values()),
        left_out=f" It has upcycled losses of {', '.join(without)}, but no law from scratch of them."
        if without
        else "",
        losses=losses,
        no_points="" if losses is not None else FITS_ALONE,
        mark=mark,
    )


def _belongs(fit: FitResult, mixture: Mixture) -> bool:
    """Whether a fit is of this mixture, of dense models or of all lineages from scratch with this mixture."""
    if fit.by == "lineage":
        moe = fit.group_fits.get("moe")
        return moe is None or mixture_of(moe) in (None, mixture)
    return fit.lineage == "dense" or mixture_of(fit) == mixture


class Columns:
    """Columns of draws [B], each once, as base64 of little-endian float64: the bits of every number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def place(self, column_B: Array) -> int:
        """Number of the column that holds these draws."""
        text = base64.b64encode(np.asarray(column_B, dtype="<f8").tobytes()).decode()
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text)


def source_data(source: Constants) -> dict[str, Any]:
    """A source as JSON for laws.js and advisor.js; numbers at full precision."""
    columns = Columns()
    first = source.mixtures[0]
    mixtures = [
        {
            "n_expert": three.n_expert,
            "top_k": three.top_k,
            "active_ratio": three.active_ratio,
            "data_tokens": three.data_tokens,
            "law_error": error,
            "draws": three.n_draws,
            "notes": _notes(three, error),
            "curves": {
                name: _curve_data(curve, columns)
                for name, curve in (("dense", three.dense), ("moe", three.moe), ("upcycled", three.upcycled))
                if curve is not None
            },
            "points": _points(three, source.losses),
        }
        for three, error in zip(source.mixtures, source.law_error, strict=True)
    ]
    return {
        "name": source.name,
        "statement": source.statement,
        "mark": f"{source.mark}: {MEANINGS[source.mark]}" if source.mark else "",
        "rounded": first.rounded,
        "sure": SURE,
        "columns": columns.texts,
        "mixtures": mixtures,
        "fixed": _fixed(source),
        "no_points": source.no_points,
        "start": _start(first),
    }


def _notes(three: ThreeLaws, error: float | None) -> list[str]:
    """Caveats that hold at every setting, the gravest first (as `upcycle advise` orders them)."""
    own = [] if three.n_draws else ["The fits have no draws: there are no bands."]
    own += [] if error else ["The laws' own error on one loss is not known, so no share includes it."]
    return [*([] if three.rounded else three.notes), *own, *(three.notes if three.rounded else [])]


def _curve_data(curve: Curve, columns: Columns) -> dict[str, Any]:
    law, values, draws = _in_powers(curve.law, dict(curve.values), dict(curve.draws or {}))
    terms = [[asdict(factor) for factor in term] for term in read_formula(law.formula).terms]
    for factor in (factor for term in terms for factor in term):
        for base in (factor["base"], factor["of"]):
            if base is not None and base["input"] == "N":  # Equation 3's name of the dense model's size
                base["input"] = "N1"
    return plain(
        {
            "label": law.label,
            "formula": law.formula,
            "terms": terms,
            "kinds": {parameter.name: parameter.kind for parameter in law.parameters},
            "units": {parameter.name: parameter.unit for parameter in law.parameters},
            "values": {name: values[name] for name in law.names},
            "draws": {name: columns.place(draws[name]) for name in law.names} if draws else {},
            "box": {name: list(ends) for name, ends in curve.box.items()},
            "sized": curve.depends_on_size,
        }
    )


def _in_powers(
    law: Law, values: dict[str, float], draws: dict[str, Array]
) -> tuple[Law, dict[str, float], dict[str, Array]]:
    """A law whose formula is a sum of powers: of C.3's bilinear form, Equation 1, with A = e^c."""
    if law.name != "bilinear":
        return law, values, draws
    scale = {"A": np.exp(draws["c"])} if draws else {}
    return get_law("multiplicative_limit"), {**values, "A": math.exp(values["c"])}, {**draws, **scale}


def _fixed(source: Constants) -> dict[str, dict[str, Any]]:
    """Inputs that the laws cannot vary: their value, and the reason in a sentence."""
    first = source.mixtures[0]
    up, found = first.upcycled, {}
    if "N1" in up.box and not (up.depends_on_size and up.box["N1"][0] < up.box["N1"][1]):
        low, high = up.box["N1"]
        sizes = f"one size, N1 = {short_count(low)}" if low == high else "several sizes taken together"
        found["n1"] = {"value": low, "why": f"The law of upcycled models was fitted at {sizes}, and knows no other."}
    if up.box["D1"][0] == up.box["D1"][1]:
        value = up.box["D1"][0]
        found["d1"] = {"value": value, "why": f"All upcycled models have one D1, {short_count(value)} tokens."}
    several = {name: {getattr(three, name) for three in source.mixtures} for name in ("n_expert", "top_k")}
    for key, name, what in (("experts", "n_expert", "experts"), ("top_k", "top_k", "active experts")):
        if len(several[name]) == 1:
            mixture = f"{first.n_expert} experts, top-{first.top_k}"
            reason = f"Losses of {mixture}" if len(source.mixtures) == 1 else f"Losses of {getattr(first, name)} {what}"
            why = f"{reason} alone: these constants say nothing of others.{source.left_out}"
            found[key] = {"value": getattr(first, name), "why": why}
    return plain(found)


def _start(three: ThreeLaws) -> dict[str, float]:
    """The setting that the page opens with, within the data: a large N1, D1 at three quarters, D2 in the middle."""
    box = three.upcycled.box

    def between(name: str, share: float) -> float:
        low, high = box[name]
        return float(f"{low ** (1 - share) * high**share:.2g}")

    n1 = box["N1"][1] if "N1" in box else 1e9
    return {"n1": float(f"{0.95 * n1:.1g}"), "d1": between("D1", 0.75), "d2": between("D2", 0.5)}


def _points(three: ThreeLaws, losses: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Every finished model, with the inputs of its law; `law` is None where there is none, and `why` says why."""
    if losses is None:
        return []
    fitted = {run for curve in three.curves for run in curve.ids}
    return [plain(_point(three, row) | {"fitted": row["id"] in fitted}) for row in losses.to_dict("records")]


def _point(three: ThreeLaws, row: Mapping[Any, Any]) -> dict[str, Any]:
    lineage, before, tokens, n1 = row["lineage"], float(row["D1"]), float(row["D"]), float(row["N1"])
    dense = lineage in ("dense", "cont")
    name = "dense" if dense else "upcycled" if lineage == "up" else "moe"
    curve = {"dense": three.dense, "moe": three.moe, "upcycled": three.upcycled}[name]
    inputs = {"D1": before, "D2": tokens} if lineage == "up" else {"D": tokens + (before if dense else 0)}
    low, high = (math.nan, math.nan) if curve is None else curve.box.get("N1", (n1, n1))
    why = ""
    if curve is None:
        why = "no law"
    elif not dense and (row["n_expert"], row["top_k"]) != (three.n_expert, three.top_k):
        why = "other mixture"
    elif row["method"] == EXPAND:
        why = "other parent"  # a mixture, so that D1 means something else
    elif not (curve.depends_on_size or low <= n1 <= high):
        why = "other size"
    law = name if not why else None
    return {
        "run": row["id"],
        "kind": name,
        "law_of": law,
        "why": why,
        "inputs": {**inputs, "N1": n1},
        "loss": row["loss"],
    }
