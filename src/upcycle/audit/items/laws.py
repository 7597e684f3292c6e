"""Audit of the laws: Table 2, the forms of Equations 1 to 12, 16 to 18, the Requirements, units, signs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
from scipy.optimize import brentq

from upcycle.audit.items.models import EIGHT, shape
from upcycle.audit.items.training import largest_budget
from upcycle.audit.printed import TABLE_3, TABLE_8
from upcycle.audit.verdict import AuditItem, Evidence, Texts
from upcycle.decisions.published import TABLE_2, TABLE_2_E, half_unit
from upcycle.laws.forms import get_law
from upcycle.study.counting import n1, n2

SIZE = 1e9
"""N1 of the examples: the paper's 8x1B."""
SUNK = 1e10
"""D1 of the examples."""
LLAMA2_TOKENS = 2e12
"""D1 of section 5.2's example."""
_TEXTS = Texts.of("laws")


def laws_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    yield from _table_2(evidence)
    yield from _forms(evidence)
    yield from _signs(evidence)
    yield from _requirements(evidence)
    yield from _interpretation(evidence)
    yield from _units(evidence)


def _at(law: str, values: Mapping[str, float], **inputs: float) -> float:
    """What a law predicts at one point, nats."""
    return float(get_law(law).predict(values, {name: np.array([float(each)]) for name, each in inputs.items()})[0])


def _table_2(evidence: Evidence) -> Iterator[AuditItem]:
    names = {"dense": "dense", "moe": "MoE", "upcycled": "upcycled"}
    for lineage, cells in TABLE_2.items():
        shown = ", ".join(f"{name} {text}" for name, text in cells.items())
        yield _TEXTS.lost("table_2", len(cells), name=names[lineage], cells=shown)
    yield _TEXTS.lost("floor", E=TABLE_2_E)
    yield _TEXTS.lost("validation")
    values = {name: float(TABLE_2["upcycled"][name]) for name in ("alpha1", "alpha2", "alpha3")}
    values["smallest of Table 8"] = min(float(text) for cells in TABLE_8.values() for text in cells)
    yield _TEXTS.claim("positive", min(values.values()) > 0, values, count=3)
    curves = {name: getattr(evidence.three, lineage).values for lineage, name in names.items()}
    floors = {name: law["E"] + law["B"] * SIZE ** -law["beta"] for name, law in curves.items()}
    yield _TEXTS.follows("endless", floors)


def _forms(evidence: Evidence) -> Iterator[AuditItem]:
    up = {**evidence.three.upcycled.values}
    tokens = {name: up[name] for name in ("A", "alpha1", "alpha2", "alpha3", "E")}
    d2 = min(largest_budget(evidence, name) for name in TABLE_3) / 16
    limit, full = (_at(law, tokens, D1=SUNK, D2=d2) for law in ("multiplicative_limit", "multiplicative"))
    difference = abs(limit / full - 1)
    yield _TEXTS.claim("limit", difference < 1e-6, {"relative difference": difference})
    here, before = (_at("additive", tokens | {"F": 1.0}, D1=SUNK, D2=each) for each in (d2, d2 - 1))
    yield _TEXTS.claim("limit_additive", abs(here - before) < 1e-6, {"difference": abs(here - before)})
    active = float(min(n2(shape(name), EIGHT) for name in TABLE_3))
    config = {"A": 1.0, "F": 1.0, "beta1": 0.3, "beta2": 0.34, "beta3": 0.01, "E": 0.0}
    for equation, law in (("Equation 17", "configuration_multiplicative"), ("Equation 18", "configuration_additive")):
        here, before = (_at(law, config, P=4, N2=each) for each in (active, active - 1))
        difference = abs(before / here - 1)
        values = {"relative difference": difference}
        yield _TEXTS.claim("limit_configuration", difference < 1e-6, values, equation=equation)
    exponent = up["alpha2"] - up["alpha3"] * math.log(SUNK)
    power = {"A": up["A"] * SUNK ** -up["alpha1"], "alpha": exponent, "E": up["E"]}
    same = all(
        math.isclose(_at("power", power, D2=d2), _at("multiplicative_limit", tokens, D1=SUNK, D2=d2), rel_tol=1e-12)
        for d2 in (1e9, 1e10, 1e11)
    )
    for where, printed in (
        ("Equation 7 and Requirement 1", "a power law in D2 at fixed D1"),
        ("Equation 16", "its scaling factor is A D1^-α1"),
    ):
        recomputed = "the same" if same else "differs"
        yield _TEXTS.claim("fixed_d1", same, recomputed=recomputed, where=where, printed=printed)
    values = {name: getattr(evidence.three, name).loss(D=SUNK, N1=SIZE).item() for name in ("dense", "moe")}
    yield _TEXTS.follows("equation_3", values)


def _signs(evidence: Evidence) -> Iterator[AuditItem]:
    up = evidence.three.upcycled.values
    log = math.log(SUNK)
    line = {"gamma": up["alpha3"], "E_prime": -up["alpha2"]}
    exponent = _at("exponent_vs_d1", line, D1=SUNK)
    printed = -line["E_prime"] + line["gamma"] * log
    values = {"as printed": printed, "by Equation 10": exponent}
    yield _TEXTS.claim("sign_of_e", math.isclose(printed, exponent), values)
    same = math.isclose(exponent, -up["alpha2"] + up["alpha3"] * log)
    yield _TEXTS.claim("equation_10", same, {"exponent": exponent})
    bilinear = {"c": math.log(up["A"]), **{name: up[name] for name in ("alpha1", "alpha2", "alpha3")}, "E": 0.0}
    right = math.log(_at("bilinear", bilinear, D1=SUNK, D2=SUNK))
    stated = bilinear["c"] + up["alpha1"] * log + up["alpha2"] * log + up["alpha3"] * log**2
    first = math.log(_at("multiplicative", {**bilinear, "A": up["A"]}, D1=SUNK, D2=SUNK))
    values = {"as printed": stated, "by Equation 8": first, "with -α1, -α2, +α3": right}
    yield _TEXTS.claim("logarithm", math.isclose(stated, first, rel_tol=1e-6), values)


def _requirements(evidence: Evidence) -> Iterator[AuditItem]:
    up, dense = evidence.three.upcycled, evidence.three.need("dense")
    form = {name: up.values[name] for name in ("A", "alpha1", "alpha2", "alpha3", "E")}
    at_zero = _at("multiplicative", form, D1=SUNK, D2=0)
    power = _at("power_in_tokens", {"A": form["A"], "alpha": form["alpha1"], "E": form["E"]}, D=SUNK)
    yield _TEXTS.claim("requirement_2_form", math.isclose(at_zero, power), {"loss": at_zero})
    exponents = {"upcycled α1": up.values["alpha1"], "dense α": dense.values["alpha"]}
    halves = half_unit(TABLE_2["upcycled"]["alpha1"]) + half_unit(TABLE_2["dense"]["alpha"])
    gap = abs(exponents["upcycled α1"] - exponents["dense α"])
    yield _TEXTS.claim("requirement_2", gap == 0, exponents, under_rounding=gap <= halves)
    # (1 + D2) at D2 = 0 is Equation 12 at D2 = 1 token.
    limit, target = up.loss(D1=SUNK, D2=1.0, N1=SIZE).item(), dense.loss(D=SUNK, N1=SIZE).item()
    meeting = brentq(lambda log: up.loss(D1=SUNK, D2=math.exp(log), N1=SIZE).item() - target, 0.0, math.log(1e12))
    differences = up.loss_draws(D1=SUNK, D2=1.0, N1=SIZE) - dense.loss_draws(D=SUNK, N1=SIZE)
    tokens = math.exp(float(meeting))
    yield _TEXTS.claim(
        "requirement_4",
        math.isclose(limit, target, rel_tol=1e-3),
        {"upcycled": limit, "dense": target, "D2 where they meet": tokens, "of D1": tokens / SUNK},
        under_rounding=differences.min() <= 0 <= differences.max(),
        tokens=tokens / 1e9,
    )
    tiny = up.loss(D1=SUNK, D2=1e-9, N1=SIZE).item()
    yield _TEXTS.follows("diverges", {"1 + D2 at D2 = 0": limit, "D2 = 1e-9": tiny})
    sizes = np.array([float(n1(shape(name))) for name in TABLE_3])
    above = up.loss(D1=SUNK, D2=SUNK, N1=sizes) - up.values["B"] * sizes ** -up.values["beta"]
    constant = np.allclose(above, above[0], rtol=1e-12)
    yield _TEXTS.claim("requirement_3", constant, {"E at D1 = D2 = 1e10": above[0]})
    rejected = {"A": 1.0, "alpha1": 0.1, "B": 1.0, "alpha2": 0.1, "beta": 0.1, "alpha3": 0.0, "E": 0.0}
    ends = [_at("joint_rejected", rejected, D1=SUNK, D2=d2, N1=SIZE) for d2 in (1.0, 1e-9)]
    values = dict(zip(("1 + D2 at D2 = 0", "as printed, D2 = 1e-9"), ends, strict=True))
    yield _TEXTS.claim("rejected_form", math.isclose(ends[0], SUNK**-0.1 + SIZE**-0.1), values)
    yield _TEXTS.lost("one_law")


def _interpretation(evidence: Evidence) -> Iterator[AuditItem]:
    up = evidence.three.upcycled.values
    budgets = sorted({largest_budget(evidence, name) for name in TABLE_3})
    factors = [up["A"] * tokens ** -up["alpha1"] for tokens in budgets]
    exponents = [up["alpha2"] - up["alpha3"] * math.log(tokens) for tokens in budgets]
    for what, values in (
        ("effective scaling factor A D1^-α1", factors),
        ("effective exponent α2 - α3 log D1", exponents),
    ):
        falls = all(high > low for high, low in itertools.pairwise(values))
        yield _TEXTS.claim("smaller", falls, {"at the smallest": values[0], "at the largest": values[-1]}, what=what)


def _units(evidence: Evidence) -> Iterator[AuditItem]:
    up = evidence.three.upcycled.values
    conventions = {
        "natural, tokens": math.log(LLAMA2_TOKENS),
        "log10": math.log10(LLAMA2_TOKENS),
        "log2": math.log2(LLAMA2_TOKENS),
        "D in M": math.log(LLAMA2_TOKENS / 1e6),
        "D in B": math.log(LLAMA2_TOKENS / 1e9),
    }
    exponents = {name: up["beta"] / (up["alpha2"] - up["alpha3"] * log) for name, log in conventions.items()}
    yield _TEXTS.follows("units", exponents)
