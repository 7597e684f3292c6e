"""Audit of the tables of results: Tables 1, 7 and 8, the numbers of D.1 and E.2, and what the text says of them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from upcycle.audit.items.models import shape
from upcycle.audit.items.training import largest_budget
from upcycle.audit.printed import (
    BENCHMARKS,
    CONFIGURATION_RMS,
    EQUATION_11,
    EQUATION_19,
    MIXTURES,
    TABLE_1,
    TABLE_3,
    TABLE_7,
    TABLE_8,
)
from upcycle.audit.verdict import AuditItem, Evidence, box, claim, follows, lost, number_item
from upcycle.laws.forms import get_law
from upcycle.laws.law import Law
from upcycle.study.counting import n1

_LOSSES = "needs the losses of the sweep"


def tables_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    yield from _table_1()
    yield from _table_7()
    yield from _table_8(evidence)
    yield from _configuration(evidence)
    yield from _equation_19(evidence)


def _table_1() -> Iterator[AuditItem]:
    for law, cells in TABLE_1.items():
        remark = f"{_LOSSES}; whether of the loss or of its logarithm is not said"
        yield lost(f"Table 1, {law}", " ".join(cells), remark, len(cells))
    margins = {}
    for column, mixture in enumerate(MIXTURES):
        first, *others = (float(cells[column]) for cells in TABLE_1.values())
        margins[mixture] = min(others) / first
    yield claim(
        "Table 1, multiplicative with interaction is lowest in each column",
        "consistently the lowest",
        all(margin > 1 for margin in margins.values()),
        "the next lowest over it, cells of Table 1",
        values=margins,
        count=len(margins),
    )


def _table_7() -> Iterator[AuditItem]:
    scores = {model: [float(cell) for cell in cells[:-1] if cell != "-"] for model, cells in TABLE_7.items()}
    for model, cells in TABLE_7.items():
        given = len(scores[model])
        yield lost(f"Table 7, {model}", " ".join(cells[:-1]), "needs the trained model and its evaluation", given)
        if cells[-1] != "-":
            mean = round(statistics.mean(scores[model]), 10)
            yield number_item(f"Table 7, {model}, mean", cells[-1], mean, "the seven scores", suffix=" %")
    best = "Upcycled 8x1B"
    means = {model: float(cells[-1]) for model, cells in TABLE_7.items() if cells[-1] != "-"}
    yield claim(
        "Section A.9, the upcycled model achieves overall the best performance",
        "overall the best",
        max(means, key=lambda model: means[model]) == best,
        "means of Table 7",
        values=means,
    )
    yield claim(
        "Section A.9, the dense model performs similarly to the open models",
        "similarly",
        abs(means["1B"] - means["Pythia-1B"]) < 1,
        "means of Table 7, less than a point apart",
        values={"1B less Pythia-1B": means["1B"] - means["Pythia-1B"]},
    )
    columns = {model: dict(zip(BENCHMARKS, cells, strict=False)) for model, cells in TABLE_7.items()}
    first = [
        name
        for name in BENCHMARKS
        if float(columns[best][name]) == max(float(cells[name]) for cells in columns.values() if cells[name] != "-")
    ]
    yield follows(
        "Table 7, benchmarks on which the upcycled model is best",
        {"of 7": float(len(first))},
        "cells of Table 7",
        ", ".join(first),
    )
    gains = {name: float(columns[best][name]) - float(columns["1B"][name]) for name in BENCHMARKS}
    yield claim(
        "Section A.9, upcycling improved the scores",
        "improved the scores",
        all(gain > 0 for gain in gains.values()),
        "Table 7, upcycled 8x1B less 1B",
        values=gains,
    )


def _exponents(column: int) -> dict[str, str]:
    return {name: cells[column] for name, cells in TABLE_8.items()}


def _table_8(evidence: Evidence) -> Iterator[AuditItem]:
    for name, row in TABLE_8.items():
        yield lost(f"Table 8, {name}", " ".join(row), _LOSSES, len(row))
    columns = {mixture: _exponents(column) for column, mixture in enumerate(MIXTURES)}
    yield claim(
        "Section 4.1.1, α2 ≳ α1",
        "α2 ≳ α1",
        all(1 <= float(cells["alpha2"]) / float(cells["alpha1"]) < 1.25 for cells in columns.values()),
        "Table 8, α2 / α1 from 1 to 1.25",
        values={mixture: float(cells["alpha2"]) / float(cells["alpha1"]) for mixture, cells in columns.items()},
        count=4,
    )
    yield claim(
        "Section 4.1.1, α1 ≫ α3",
        "α1 ≫ α3",
        all(float(cells["alpha1"]) / float(cells["alpha3"]) > 10 for cells in columns.values()),
        "Table 8, α1 / α3 above 10",
        values={mixture: float(cells["alpha1"]) / float(cells["alpha3"]) for mixture, cells in columns.items()},
        count=4,
    )
    log_d1 = math.log(largest_budget(evidence, "15M"))
    for mixture, cells in columns.items():
        low, high = box(lambda a2, a3: a2 - a3 * log_d1, cells["alpha2"], cells["alpha3"])
        yield follows(
            f"Table 8, {mixture}, exponent of D2 at D1 = 2.3B",
            {"exponent": (low + high) / 2, "half-width by rounding": (high - low) / 2},
            "α2 - α3 ln D1",
            "A and E are not printed, so no curve can be drawn from it",
        )
    yield from _slope_in_d1(evidence, columns)
    joint = float(evidence.three.upcycled.values["alpha3"])
    yield follows(
        "Tables 2 and 8, α3",
        {"ratio": float(columns["(8,2)"]["alpha3"]) / joint},
        "Table 8, (8,2), over Table 2",
        "fitted with another E",
    )
    upcycled = evidence.three.upcycled.values
    yield follows(
        "Table 2, α2 / α1 of the upcycled law",
        {"ratio": upcycled["alpha2"] / upcycled["alpha1"]},
        "Table 2",
        "section 4.1.1 says slightly larger, of Table 8",
    )


def _slope_in_d1(evidence: Evidence, columns: dict[str, dict[str, str]]) -> Iterator[AuditItem]:
    """The exponent of D1 at fixed D2, which must be negative for more dense training to help."""
    largest = math.log(largest_budget(evidence, "0.1B"))
    slopes = {}
    allowed = {}
    for mixture, cells in columns.items():
        slopes[mixture] = -float(cells["alpha1"]) + float(cells["alpha3"]) * largest
        allowed[mixture] = box(lambda a1, a3: -a1 + a3 * largest, cells["alpha1"], cells["alpha3"])[0]
    rising = [mixture for mixture, slope in slopes.items() if slope >= 0]
    turn = [math.exp(float(columns[each]["alpha1"]) / float(columns[each]["alpha3"])) / 1e9 for each in rising]
    yield claim(
        "Section 4.1.1, at fixed D2 a larger D1 gives a lower loss, by Table 8",
        "performs better with increasing D1",
        not rising,
        "-α1 + α3 ln D2 at the 0.1B model's largest D2, 9.2B tokens",
        values=slopes,
        under_rounding=all(low < 0 for low in allowed.values()),
        remark=f"{', '.join(rising)}: as printed a larger D1 raises the loss above D2 = "
        f"{', '.join(f'{tokens:.1f}' for tokens in turn)}B; rounding allows either sign",
    )
    values = evidence.three.upcycled.values
    top = math.log(max(largest_budget(evidence, name) for name in TABLE_3))
    yield claim(
        "Section 4.1.1, the same by Table 2",
        "performs better with increasing D1",
        -values["alpha1"] + values["alpha3"] * top < 0,
        "-α1 + α3 ln D2 at the largest D2, 73.8B tokens",
        values={"exponent": -values["alpha1"] + values["alpha3"] * top},
    )


def _configuration(evidence: Evidence) -> Iterator[AuditItem]:
    betas = " ".join(f"{name} {text}" for name, text in EQUATION_11.items())
    yield lost("Equation 11, exponents", betas, _LOSSES + "; A, F and E are not printed", len(EQUATION_11))
    shown = " ".join(CONFIGURATION_RMS.values())
    yield lost("Equations 17 and 18, RMS", shown, _LOSSES, len(CONFIGURATION_RMS))
    lowest = min(CONFIGURATION_RMS, key=lambda name: float(CONFIGURATION_RMS[name]))
    yield claim(
        "Section D.1, the additive form without interaction fits best",
        "additive without interaction",
        lowest == "additive",
        "the four RMS of D.1",
        recomputed=f"lowest: {lowest}",
        remark="printed once as `the additional form`",
    )
    at = {"A": 1.0, "F": 1.0, "E": 0.0, **{name: float(text) for name, text in EQUATION_11.items()}}
    law = get_law("configuration")
    sizes = [n1(shape(name)) for name in evidence.study.sweeps["configuration"].model]
    low, high = float(min(sizes)), float(max(sizes))
    p_exponent = -math.log(law.predict(at | {"F": 0.0}, {"P": np.array([2.0]), "N2": np.array([low])})[0]) / math.log(2)
    n_terms = law.predict(at | {"A": 0.0}, {"P": np.array([2.0, 2.0]), "N2": np.array([low, high])})
    n_exponent = math.log(n_terms[0] / n_terms[1]) / math.log(high / low)
    yield claim(
        "Section D.1, exponents β1 of N2 and β2 of P",
        "A N2^-β1 + E and A P^-β2 + E",
        bool(np.isclose(n_exponent, at["beta1"]) and np.isclose(p_exponent, at["beta2"])),
        "exponents of P and of N2 in Equation 11 with its printed values",
        values={"exponent of P": p_exponent, "exponent of N2": n_exponent},
        remark="β1 and β2 are swapped against Equations 11, 17 and 18: β1 belongs to P, β2 to N2",
        count=2,
    )


def _equation_19(evidence: Evidence) -> Iterator[AuditItem]:
    shown = ", ".join(f"{name} {text}" for name, text in EQUATION_19.items())
    yield lost("Equation 19, exponents", shown, _LOSSES + "; A, B and E are not printed", len(EQUATION_19))
    values = {name: float(text) for name, text in EQUATION_19.items()}
    tokens = [float(largest_budget(evidence, name)) for name in TABLE_3]
    d2, size = (min(tokens) / 16, max(tokens)), sorted(float(n1(shape(name))) for name in TABLE_3)
    law = get_law("joint_rejected")
    rising = _rises(law, values, d2, size)
    flipped = _rises(law, values | {"alpha3": -values["alpha3"]}, d2, size)
    powers = {
        "power of D2 at the smallest N1": ("alpha2", size[0]),
        "at the largest N1": ("alpha2", size[-1]),
        "power of N1 at the smallest D2": ("beta", d2[0]),
        "at the largest D2": ("beta", d2[1]),
    }
    allowed = [
        box(lambda own, a3, other=other: -own + a3 * math.log(other), EQUATION_19[own], EQUATION_19["alpha3"])
        for own, other in powers.values()
    ]
    turns = [math.exp(values[name] / values["alpha3"]) for name in ("beta", "alpha2")]
    yield claim(
        "Section E.2, Equation 19 as fitted predicts a loss that increases with dataset and model sizes",
        "increases with dataset/model sizes",
        rising,
        "its second term over the sizes and budgets of Tables 3 and 5",
        values={name: -values[own] + values["alpha3"] * math.log(other) for name, (own, other) in powers.items()},
        under_rounding=all(high > 0 for _, high in allowed),
        remark=f"with the printed signs the loss falls with N1 for D2 above {turns[0]:,.0f} tokens and with D2 for N1"
        f" above {turns[1]:,.0f}: in all of the data. With α3 = {-values['alpha3']:+g} it "
        f"{'rises' if flipped else 'does not rise everywhere either'}: the fitted sign, or this is not the reason",
    )


def _rises(law: Law, values: Mapping[str, float], d2: tuple[float, float], size: Sequence[float]) -> bool:
    """Whether the second term of Equation 19 rises with D2 and with N1 between the corners of the data."""
    corners = {"D1": np.full(4, 1e9), "D2": np.tile(d2, 2), "N1": np.repeat([size[0], size[-1]], 2)}
    losses = law.predict({**values, "A": 0.0, "B": 1.0, "E": 0.0}, corners).reshape(2, 2)
    return bool((np.diff(losses, axis=0) > 0).all() and (np.diff(losses, axis=1) > 0).all())
