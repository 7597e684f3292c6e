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
from upcycle.audit.verdict import AuditItem, Evidence, Texts, box
from upcycle.laws.forms import get_law
from upcycle.laws.law import Law
from upcycle.study.counting import n1

_TEXTS = Texts.of("tables")


def tables_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    yield from _table_1()
    yield from _table_7()
    yield from _table_8(evidence)
    yield from _configuration(evidence)
    yield from _equation_19(evidence)


def _table_1() -> Iterator[AuditItem]:
    for law, cells in TABLE_1.items():
        yield _TEXTS.lost("table_1", len(cells), law=law, cells=" ".join(cells))
    margins = {}
    for column, mixture in enumerate(MIXTURES):
        first, *others = (float(cells[column]) for cells in TABLE_1.values())
        margins[mixture] = min(others) / first
    yield _TEXTS.claim("lowest", min(margins.values()) > 1, margins, count=len(margins))


def _table_7() -> Iterator[AuditItem]:
    for model, cells in TABLE_7.items():
        scores = [float(cell) for cell in cells[:-1] if cell != "-"]
        yield _TEXTS.lost("table_7", len(scores), model=model, cells=" ".join(cells[:-1]))
        if cells[-1] != "-":
            yield _TEXTS.number("mean", round(statistics.mean(scores), 10), cells[-1], model=model)
    best = "Upcycled 8x1B"
    means = {model: float(cells[-1]) for model, cells in TABLE_7.items() if cells[-1] != "-"}
    yield _TEXTS.claim("best", max(means, key=lambda model: means[model]) == best, means)
    difference = means["1B"] - means["Pythia-1B"]
    yield _TEXTS.claim("similar", abs(difference) < 1, {"1B less Pythia-1B": difference})
    columns = {model: dict(zip(BENCHMARKS, cells, strict=False)) for model, cells in TABLE_7.items()}
    first = [
        name
        for name in BENCHMARKS
        if float(columns[best][name]) == max(float(cells[name]) for cells in columns.values() if cells[name] != "-")
    ]
    yield _TEXTS.follows("first", {"of 7": len(first)}, names=", ".join(first))
    gains = {name: float(columns[best][name]) - float(columns["1B"][name]) for name in BENCHMARKS}
    yield _TEXTS.claim("improved", min(gains.values()) > 0, gains)


def _table_8(evidence: Evidence) -> Iterator[AuditItem]:
    for name, row in TABLE_8.items():
        yield _TEXTS.lost("table_8", len(row), name=name, cells=" ".join(row))
    columns = {mixture: {name: row[k] for name, row in TABLE_8.items()} for k, mixture in enumerate(MIXTURES)}
    exponents = {mixture: {name: float(text) for name, text in cells.items()} for mixture, cells in columns.items()}
    ratios = {mixture: each["alpha2"] / each["alpha1"] for mixture, each in exponents.items()}
    yield _TEXTS.claim("alpha2_over_alpha1", all(1 <= ratio < 1.25 for ratio in ratios.values()), ratios, count=4)
    ratios = {mixture: each["alpha1"] / each["alpha3"] for mixture, each in exponents.items()}
    yield _TEXTS.claim("alpha1_over_alpha3", min(ratios.values()) > 10, ratios, count=4)
    log_d1 = math.log(largest_budget(evidence, "15M"))
    for mixture, cells in columns.items():
        low, high = box(lambda a2, a3: a2 - a3 * log_d1, cells["alpha2"], cells["alpha3"])
        values = {"exponent": (low + high) / 2, "half-width by rounding": (high - low) / 2}
        yield _TEXTS.follows("exponent", values, mixture=mixture)
    yield from _slope_in_d1(evidence, columns)
    upcycled = evidence.three.upcycled.values
    yield _TEXTS.follows("alpha3", {"ratio": exponents["(8,2)"]["alpha3"] / upcycled["alpha3"]})
    yield _TEXTS.follows("table_2_ratio", {"ratio": upcycled["alpha2"] / upcycled["alpha1"]})


def _slope_in_d1(evidence: Evidence, columns: dict[str, dict[str, str]]) -> Iterator[AuditItem]:
    """The exponent of D1 at fixed D2, which must be negative for more dense training to help."""
    largest = math.log(largest_budget(evidence, "0.1B"))
    slopes, least, turns = {}, [], {}
    for mixture, cells in columns.items():
        alpha1, alpha3 = float(cells["alpha1"]), float(cells["alpha3"])
        slopes[mixture] = -alpha1 + alpha3 * largest
        least.append(box(lambda a1, a3: -a1 + a3 * largest, cells["alpha1"], cells["alpha3"])[0])
        if slopes[mixture] >= 0:
            turns[mixture] = f"{math.exp(alpha1 / alpha3) / 1e9:.1f}"
    yield _TEXTS.claim(
        "d1_helps_table_8",
        not turns,
        slopes,
        under_rounding=max(least) < 0,
        mixtures=", ".join(turns),
        turns=", ".join(turns.values()),
    )
    values = evidence.three.upcycled.values
    top = math.log(max(largest_budget(evidence, name) for name in TABLE_3))
    exponent = -values["alpha1"] + values["alpha3"] * top
    yield _TEXTS.claim("d1_helps_table_2", exponent < 0, {"exponent": exponent})


def _configuration(evidence: Evidence) -> Iterator[AuditItem]:
    betas = " ".join(f"{name} {text}" for name, text in EQUATION_11.items())
    yield _TEXTS.lost("equation_11", len(EQUATION_11), cells=betas)
    yield _TEXTS.lost("configuration_rms", len(CONFIGURATION_RMS), cells=" ".join(CONFIGURATION_RMS.values()))
    lowest = min(CONFIGURATION_RMS, key=lambda name: float(CONFIGURATION_RMS[name]))
    yield _TEXTS.claim("configuration_best", lowest == "additive", recomputed=f"lowest: {lowest}")
    at = {"A": 1.0, "F": 1.0, "E": 0.0, **{name: float(text) for name, text in EQUATION_11.items()}}
    law = get_law("configuration")
    sizes = [n1(shape(name)) for name in evidence.study.sweeps["configuration"].model]
    low, high = float(min(sizes)), float(max(sizes))
    p_exponent = -math.log(law.predict(at | {"F": 0.0}, {"P": np.array([2.0]), "N2": np.array([low])})[0]) / math.log(2)
    n_terms = law.predict(at | {"A": 0.0}, {"P": np.array([2.0, 2.0]), "N2": np.array([low, high])})
    n_exponent = math.log(n_terms[0] / n_terms[1]) / math.log(high / low)
    as_printed = np.isclose(n_exponent, at["beta1"]) and np.isclose(p_exponent, at["beta2"])
    yield _TEXTS.claim("swapped", as_printed, {"exponent of P": p_exponent, "exponent of N2": n_exponent}, count=2)


def _equation_19(evidence: Evidence) -> Iterator[AuditItem]:
    shown = ", ".join(f"{name} {text}" for name, text in EQUATION_19.items())
    yield _TEXTS.lost("equation_19", len(EQUATION_19), cells=shown)
    values = {name: float(text) for name, text in EQUATION_19.items()}
    tokens = [float(largest_budget(evidence, name)) for name in TABLE_3]
    d2, size = (min(tokens) / 16, max(tokens)), sorted(float(n1(shape(name))) for name in TABLE_3)
    law = get_law("joint_rejected")
    flipped = _rises(law, values | {"alpha3": -values["alpha3"]}, d2, size)
    powers = {
        "power of D2 at the smallest N1": ("alpha2", size[0]),
        "at the largest N1": ("alpha2", size[-1]),
        "power of N1 at the smallest D2": ("beta", d2[0]),
        "at the largest D2": ("beta", d2[1]),
    }
    highest = [
        box(lambda own, a3, other=other: -own + a3 * math.log(other), EQUATION_19[own], EQUATION_19["alpha3"])[1]
        for own, other in powers.values()
    ]
    yield _TEXTS.claim(
        "rejected",
        _rises(law, values, d2, size),
        {name: -values[own] + values["alpha3"] * math.log(other) for name, (own, other) in powers.items()},
        under_rounding=min(highest) > 0,
        turn_d2=math.exp(values["beta"] / values["alpha3"]),
        turn_n1=math.exp(values["alpha2"] / values["alpha3"]),
        flipped=-values["alpha3"],
        how="rises" if flipped else "does not rise everywhere either",
    )


def _rises(law: Law, values: Mapping[str, float], d2: tuple[float, float], size: Sequence[float]) -> bool:
    """Whether the second term of Equation 19 rises with D2 and with N1 between the corners of the data."""
    corners = {"D1": np.full(4, 1e9), "D2": np.tile(d2, 2), "N1": np.repeat([size[0], size[-1]], 2)}
    losses = law.predict({**values, "A": 0.0, "B": 1.0, "E": 0.0}, corners).reshape(2, 2)
    return bool((np.diff(losses, axis=0) > 0).all() and (np.diff(losses, axis=1) > 0).all())
