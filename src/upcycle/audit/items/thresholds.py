"""Audit of the threshold D*: Equations 2 and 13, Figure 1 right, what rounding and an error of the losses do to it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from upcycle.audit.items.laws import LLAMA2_TOKENS, SIZE
from upcycle.audit.items.models import shape
from upcycle.audit.items.training import largest_budget
from upcycle.audit.printed import EQUATION_2
from upcycle.audit.verdict import AuditItem, Evidence, Texts, plain_number
from upcycle.decisions.curves import Curve, ThreeLaws
from upcycle.decisions.published import TABLE_2, TABLE_2_E, half_unit
from upcycle.decisions.thresholds import d_star, equation_2, refit_equation_2, threshold_d2
from upcycle.study.counting import count_parameters, n1

B = 1e9
"""The unit of the paper's tokens: a billion."""
RMS = 0.015
"""The validation error that the paper prints (section 5)."""
_TEXTS = Texts.of("thresholds")


def thresholds_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    yield from _equation_2(evidence)
    yield from _roots(evidence)
    yield from _statements(evidence)
    yield from _rounding(evidence)
    yield from _errors(evidence.central)
    yield from _other_criteria(evidence)
    yield from _literature()


def first(three: ThreeLaws, size: float, shift: float = 0.0) -> float:
    """The first root D* in billions of tokens; NaN where there is none."""
    roots = d_star(three, size, shift=shift).roots
    return roots[0] / B if roots else math.nan


def smallest_size(three: ThreeLaws) -> float:
    """The N1 below which Equation 13 has no root."""
    low, high = math.log(1e7), math.log(SIZE)
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (low, middle) if d_star(three, math.exp(middle)).roots else (middle, high)
    return math.exp(high)


def _firsts(evidence: Evidence) -> list[float]:
    """The first D* in billions of tokens at N1 = 1e9, of the draws that have one."""
    return [roots[0] / B for roots in evidence.at_1e9.draws if roots]


def _equation_2(evidence: Evidence) -> Iterator[AuditItem]:
    fitted = refit_equation_2(evidence.central)
    firsts = _firsts(evidence)
    allowed = (min(firsts), max(firsts)) if firsts else None
    yield _TEXTS.number("exponent", fitted.exponent, EQUATION_2["linear"])
    yield _TEXTS.number("curvature", fitted.curvature, EQUATION_2["quadratic"])
    yield _TEXTS.number("prefactor", fitted.prefactor / B, EQUATION_2["prefactor"], allowed=allowed)
    yield _TEXTS.number("d_star_1e9", first(evidence.central, SIZE), allowed=allowed)
    exact = count_parameters(shape("1B")).non_embedding
    yield _TEXTS.follows("d_star_1b", {"D*": first(evidence.central, exact)})
    ratios = {n: float(equation_2(n)) / B / first(evidence.central, n) for n in (0.52189e9, 1e9, 7e9, 7e10)}
    yield _TEXTS.follows("ratio", {f"at N1 = {plain_number(size)}": ratio for size, ratio in ratios.items()})


def _roots(evidence: Evidence) -> Iterator[AuditItem]:
    central = evidence.central
    for size in (float(count_parameters(shape("0.5B")).non_embedding), 1e9, 7e9, 7e10):
        roots = zip(("D*", "second root"), d_star(central, size).roots, strict=False)
        yield _TEXTS.follows("roots", {name: root / B for name, root in roots}, size=plain_number(size))
    yield _TEXTS.follows("smallest", {"N1": smallest_size(central)})
    # Another base of the logarithm in the interaction divides α3 by its natural logarithm.
    alpha3 = central.upcycled.values["alpha3"]
    found = {
        name: _moved(central, "upcycled", "alpha3", alpha3 / base - alpha3)
        for name, base in {"log10": math.log(10), "log2": math.log(2)}.items()
    }
    scaled = {"N1 in M": first(central, SIZE / 1e6), "N1 in B": first(central, SIZE / 1e9)}
    yield _TEXTS.follows("conventions", {**found, **scaled})


def _statements(evidence: Evidence) -> Iterator[AuditItem]:
    central = evidence.central
    at = d_star(central, SIZE)
    below = f"ahead below the first root: {at.below}"
    yield _TEXTS.claim("below", at.below == "upcycle", recomputed=below)
    second = at.roots[1] / B if len(at.roots) > 1 else math.nan
    yield _TEXTS.claim(
        "above",
        len(at.roots) == 1,
        {"roots": len(at.roots), "second root (B tokens)": second},
        under_rounding=evidence.at_1e9.shares["one"] > 0,
        second=second,
        shares=", ".join(f"{name} {100 * value:.0f} %" for name, value in evidence.at_1e9.shares.items()),
    )
    small = 1e8
    drawn = d_star(evidence.three, small)
    eq2 = float(equation_2(small))
    firsts = [roots[0] for roots in drawn.draws if roots]
    yield _TEXTS.claim(
        "small",
        bool(d_star(central, small).roots),
        {
            "Equation 2 (B tokens)": eq2 / B,
            "Equation 13": first(central, small),
            "share of draws with a root": len(firsts) / len(drawn.draws),
        },
        under_rounding=bool(firsts) and min(firsts) <= eq2 <= max(firsts),
        equation_2=eq2 / B,
    )
    falling = [first(central, size) for size in np.geomspace(smallest_size(central) * 1.001, 1e11, 15).tolist()]
    values = {"largest D* (B tokens)": falling[0], "smallest": falling[-1]}
    yield _TEXTS.claim("decreases", (np.diff(falling) < 0).all(), values)
    slope = at.slopes[0] if at.slopes else math.nan
    yield _TEXTS.claim("diminishes", slope < 0, {"slope": slope})


def _rounding(evidence: Evidence) -> Iterator[AuditItem]:
    firsts = np.array(_firsts(evidence) or [math.nan])
    low, middle, high = np.quantile(firsts, [0.025, 0.5, 0.975])
    values = {
        "median": middle,
        "2.5 %": low,
        "97.5 %": high,
        "smallest": firsts.min(),
        "largest": firsts.max(),
        "share of them at 4B or more": (firsts >= 4).mean(),
        "share without any": evidence.at_1e9.shares["none"],
    }
    yield _TEXTS.follows("rounding", values, draws=len(evidence.at_1e9.draws))
    cells = [(lineage, name, text) for lineage, row in TABLE_2.items() for name, text in row.items()]
    for lineage, name, text in (*cells, ("all", "E", TABLE_2_E)):
        ends = [_moved(evidence.central, lineage, name, by) for by in (-half_unit(text), half_unit(text))]
        yield _TEXTS.follows("half_unit", {"from": min(ends), "to": max(ends)}, lineage=lineage, name=name)
    exponents = [("moe", name) for name in ("alpha", "beta")]
    exponents += [("upcycled", name) for name in ("alpha1", "alpha2", "beta")]
    changes = {f"{lineage} {name}": 0.05 / abs(_slope_of_log(evidence, lineage, name)) for lineage, name in exponents}
    yield _TEXTS.follows("five_per_cent", changes)


def _moved(three: ThreeLaws, lineage: str, name: str, by: float) -> float:
    """D* at N1 = 1e9 in billions of tokens with one parameter moved; `all`: in each of the laws."""
    for each in ("dense", "moe", "upcycled") if lineage == "all" else (lineage,):
        curve: Curve = getattr(three, each)
        values: Mapping[str, float] = {**curve.values, name: curve.values[name] + by}
        moved: dict[str, Any] = {each: replace(curve, values=values)}
        three = replace(three, **moved)
    return first(three, SIZE)


def _slope_of_log(evidence: Evidence, lineage: str, name: str, step: float = 1e-6) -> float:
    below, above = (_moved(evidence.central, lineage, name, by) for by in (-step, step))
    return math.log(above / below) / (2 * step)


def _errors(central: ThreeLaws) -> Iterator[AuditItem]:
    slope = (*d_star(central, SIZE).slopes, math.nan)[0]
    values = {
        "slope (nats per ln D)": slope,
        "factor": math.exp(RMS / abs(slope)),
        "gap less 0.015": first(central, SIZE, -RMS),
        "gap plus 0.015": first(central, SIZE, RMS),
    }
    yield _TEXTS.follows("error", values)
    for name, size in (("1e9", SIZE), ("0.1B", float(n1(shape("0.1B"))))):

        def gap(log: float, size: float = size) -> float:
            tokens = math.exp(log)
            up = central.upcycled.loss(D1=tokens, D2=tokens, N1=size)
            return (central.need("moe").loss(D=tokens, N1=size) - up).item()

        least = minimize_scalar(gap, bounds=(math.log(1e7), math.log(1e15)), method="bounded", options={"xatol": 1e-9})
        yield _TEXTS.follows("gap", {"nats": float(least.fun), "at D (B tokens)": math.exp(least.x) / B}, name=name)


def _other_criteria(evidence: Evidence) -> Iterator[AuditItem]:
    central = evidence.central
    d1, d2 = 1e9, 1e10
    target = central.upcycled.loss(D1=d1, D2=d2, N1=SIZE).item()
    moe = central.need("moe")
    log = brentq(lambda x: moe.loss(D=math.exp(x), N1=SIZE).item() - target, math.log(1e6), math.log(1e15))
    needed = math.exp(float(log))
    yield _TEXTS.follows("match", {"B tokens": needed / B, "of D1": needed / d1, "of D2": needed / d2})
    budgets = (1e9, 1e10, float(largest_budget(evidence, "1B")), 1e11, 1e12)
    for size, sunk in ((1e9, budgets), (7e9, (*budgets, LLAMA2_TOKENS))):
        roots = {tokens: (*threshold_d2(central, size, tokens).roots, math.nan)[0] for tokens in sunk}
        values = {f"D1 = {tokens / B:,.0f}B": root / B for tokens, root in roots.items()}
        yield _TEXTS.follows("by_d1", values, size=plain_number(size, 1))


def _literature() -> Iterator[AuditItem]:
    dense, more, scratch = 2.0, 0.4, 2.4
    yield _TEXTS.number("share", 100 * scratch / dense)
    yield _TEXTS.number("saved", scratch - more)
    yield _TEXTS.lost("literature", 2)
