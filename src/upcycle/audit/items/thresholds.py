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
from upcycle.audit.verdict import AuditItem, Evidence, claim, follows, lost, number_item, plain_number
from upcycle.decisions.curves import Curve, ThreeLaws
from upcycle.decisions.published import TABLE_2, TABLE_2_E, half_unit
from upcycle.decisions.thresholds import d_star, equation_2, refit_equation_2, threshold_d2
from upcycle.study.counting import count_parameters, n1

B = 1e9
"""The unit of the paper's tokens: a billion."""
RMS = 0.015
"""The validation error that the paper prints (section 5)."""
_TABLE_2 = "Equation 13 with Table 2"


def thresholds_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    yield from _equation_2(evidence)
    yield from _roots(evidence)
    yield from _statements(evidence)
    yield from _rounding(evidence)
    yield from _errors(evidence)
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


def _allowed(evidence: Evidence) -> tuple[float, float] | None:
    """The D* of the draws at N1 = 1e9 in billions of tokens, smallest and largest; None where none has one."""
    firsts = [roots[0] / B for roots in evidence.at_1e9.draws if roots]
    return (min(firsts), max(firsts)) if firsts else None


def _equation_2(evidence: Evidence) -> Iterator[AuditItem]:
    fitted = refit_equation_2(evidence.central)
    source = "ln D* of Table 2 fitted in ln(N1 / 1e9) and its square over 1e9 to 1e11"
    yield number_item("Equation 2, exponent", EQUATION_2["linear"], fitted.exponent, source)
    yield number_item("Equation 2, coefficient of the logarithm", EQUATION_2["quadratic"], fitted.curvature, source)
    allowed = _allowed(evidence)
    prefactor = fitted.prefactor / B
    yield number_item("Equation 2, prefactor", EQUATION_2["prefactor"], prefactor, source, suffix="B", allowed=allowed)
    source = f"{_TABLE_2} at N1 = 1e9"
    value = first(evidence.central, SIZE)
    yield number_item("Equation 13, D* of an 8x1B model (section 5.1)", "4", value, source, suffix="B", allowed=allowed)
    exact = count_parameters(shape("1B")).non_embedding
    yield follows("Equation 13, D* of Table 3's 1B (B tokens)", {"D*": first(evidence.central, exact)}, _TABLE_2)
    sizes = [0.52189e9, 1e9, 7e9, 7e10]
    yield follows(
        "Equation 2 over Equation 13",
        {
            f"at N1 = {plain_number(size)}": float(equation_2(size)) / B / first(evidence.central, size)
            for size in sizes
        },
        "printed formula over the root of Table 2",
        "the prefactor of Equation 2 is that of parameters before rounding: keep full precision",
    )


def _roots(evidence: Evidence) -> Iterator[AuditItem]:
    half = count_parameters(shape("0.5B")).non_embedding
    for size in (float(half), 1e9, 7e9, 7e10):
        roots = d_star(evidence.central, size).roots
        yield follows(
            f"Figure 1 right, D* at N1 = {plain_number(size)} (B tokens)",
            {name: root / B for name, root in zip(("D*", "second root"), roots, strict=False)},
            _TABLE_2,
        )
    yield follows(
        "Figure 1 right, smallest N1 with any D*",
        {"N1": smallest_size(evidence.central)},
        _TABLE_2,
        "below it training from scratch never catches up, and there is no D*",
    )
    by_convention = {"log10": math.log(10), "log2": math.log(2)}
    found = {name: first(_with_alpha3(evidence.central, 1 / base), SIZE) for name, base in by_convention.items()}
    scaled = {"N1 in M": first(evidence.central, SIZE / 1e6), "N1 in B": first(evidence.central, SIZE / 1e9)}
    yield follows(
        "Section 5.1, D* at N1 = 1e9 by convention of units (B tokens)",
        {**found, **scaled},
        _TABLE_2,
        "only natural logarithms, tokens and parameters come near the printed 4B",
    )


def _with_alpha3(three: ThreeLaws, factor: float) -> ThreeLaws:
    """Another base of the logarithm in the interaction: α3 times a factor."""
    values = {**three.upcycled.values, "alpha3": three.upcycled.values["alpha3"] * factor}
    return replace(three, upcycled=Curve(three.upcycled.law, values, None, three.upcycled.box))


def _statements(evidence: Evidence) -> Iterator[AuditItem]:
    central = evidence.central
    at = d_star(central, SIZE)
    share = ", ".join(f"{name} {value:.0%}" for name, value in evidence.at_1e9.shares.items())
    yield claim(
        "Section 5.1, upcycling is more efficient below D*",
        "D2 ≤ D*: more efficient",
        at.below == "upcycle",
        f"{_TABLE_2} at N1 = 1e9",
        recomputed=f"ahead below the first root: {at.below}",
    )
    second = at.roots[1] / B if len(at.roots) > 1 else math.nan
    yield claim(
        "Sections 1 and 5.1, Figure 1: from scratch is more efficient for all budgets above D*",
        "for all budgets above the curve",
        len(at.roots) == 1,
        f"{_TABLE_2} at N1 = 1e9, up to 1e18 tokens",
        values={"roots": float(len(at.roots)), "second root (B tokens)": second},
        under_rounding=evidence.at_1e9.shares["one"] > 0,
        remark=f"the printed laws cross again at {second:.0f}B tokens, above which upcycling is ahead: its law has the"
        f" lowest floor. Roots of draws within rounding: {share}",
    )
    small = 1e8
    drawn = d_star(evidence.three, small)
    eq2 = float(equation_2(small))
    firsts = [roots[0] for roots in drawn.draws if roots]
    yield claim(
        "Equation 2 at N1 = 1e8, a solution of Equation 13",
        f"≃ {eq2 / B:.0f}B (Equation 2)",
        bool(d_star(central, small).roots),
        f"{_TABLE_2} at N1 = 1e8",
        values={
            "Equation 2 (B tokens)": eq2 / B,
            "Equation 13": first(central, small),
            "share of draws with a root": len(firsts) / len(drawn.draws),
        },
        under_rounding=bool(firsts) and min(firsts) <= eq2 <= max(firsts),
        remark="Equation 13 has no root there: from scratch never catches up with the printed parameters",
    )
    sizes = np.geomspace(smallest_size(central) * 1.001, 1e11, 15)
    falling = [first(central, float(size)) for size in sizes]
    yield claim(
        "Section 5.1, D* decreases with increasing model size",
        "decreases",
        bool((np.diff(falling) < 0).all()),
        f"{_TABLE_2}, 15 sizes from the smallest with a root to 1e11",
        values={"largest D* (B tokens)": falling[0], "smallest": falling[-1]},
    )
    yield claim(
        "Section 5.1, efficiency diminishes as the sunk cost increases",
        "diminishes",
        bool(at.slopes) and at.slopes[0] < 0,
        "d (L_moe - L_upcycled) / d ln D at D*, N1 = 1e9",
        values={"slope": at.slopes[0] if at.slopes else math.nan},
    )


def _rounding(evidence: Evidence) -> Iterator[AuditItem]:
    draws = evidence.at_1e9.draws
    firsts = np.array([roots[0] / B for roots in draws if roots] or [math.nan])
    low, middle, high = np.quantile(firsts, [0.025, 0.5, 0.975])
    yield follows(
        "Section 5.1, D* at N1 = 1e9 within rounding (B tokens)",
        {
            "median": float(middle),
            "2.5 %": float(low),
            "97.5 %": float(high),
            "smallest": float(firsts.min()),
            "largest": float(firsts.max()),
            "share of them at 4B or more": float((firsts >= 4).mean()),
            "share without any": evidence.at_1e9.shares["none"],
        },
        f"{len(draws)} draws of Table 2 from within its rounding",
        "so D* needs parameters at full precision and a band; none is an answer",
    )
    for lineage, cells in TABLE_2.items():
        for name, text in cells.items():
            yield _half_units(evidence, lineage, name, half_unit(text))
    yield _half_units(evidence, "all", "E", half_unit(TABLE_2_E))
    yield follows(
        "Table 2, change of one exponent that moves D* at N1 = 1e9 by 5 %",
        {
            f"{lineage} {name}": 0.05 / abs(_slope_of_log(evidence, lineage, name))
            for lineage, names in (("moe", ("alpha", "beta")), ("upcycled", ("alpha1", "alpha2", "beta")))
            for name in names
        },
        "5 % over d ln D* / d exponent",
        "so exponents are needed to about five decimals",
    )


def _moved(evidence: Evidence, lineage: str, name: str, by: float) -> float:
    """D* at N1 = 1e9 in billions of tokens with one parameter moved; `all`: in each of the laws."""
    three = evidence.central
    for each in ("dense", "moe", "upcycled") if lineage == "all" else (lineage,):
        curve: Curve = getattr(three, each)
        values: Mapping[str, float] = {**curve.values, name: curve.values[name] + by}
        moved: dict[str, Any] = {each: replace(curve, values=values)}
        three = replace(three, **moved)
    return first(three, SIZE)


def _slope_of_log(evidence: Evidence, lineage: str, name: str, step: float = 1e-6) -> float:
    below, above = (_moved(evidence, lineage, name, by) for by in (-step, step))
    return math.log(above / below) / (2 * step)


def _half_units(evidence: Evidence, lineage: str, name: str, half: float) -> AuditItem:
    """D* with one parameter half a unit of its last printed digit down and up."""
    ends = [_moved(evidence, lineage, name, by) for by in (-half, half)]
    return follows(
        f"Table 2, {lineage} {name}: D* at N1 = 1e9 (B tokens)",
        {"from": min(ends), "to": max(ends)},
        "this parameter half a unit of its last digit down and up",
    )


def _errors(evidence: Evidence) -> Iterator[AuditItem]:
    central = evidence.central
    slope = d_star(central, SIZE).slopes[:1]
    value = slope[0] if slope else math.nan
    yield follows(
        "Figure 6, what its RMS of 0.015 does to D* at N1 = 1e9 (B tokens)",
        {
            "slope (nats per ln D)": value,
            "factor": math.exp(RMS / abs(value)),
            "gap less 0.015": first(central, SIZE, -RMS),
            "gap plus 0.015": first(central, SIZE, RMS),
        },
        "gap L_moe - L_upcycled at D1 = D2 = D, Table 2",
        "an error of the size of the paper's own validation error moves D* by more than twice",
    )
    for name, size in (("1e9", SIZE), ("0.1B", float(n1(shape("0.1B"))))):

        def gap(log: float, size: float = size) -> float:
            tokens = math.exp(log)
            return (
                central.need("moe").loss(D=tokens, N1=size) - central.upcycled.loss(D1=tokens, D2=tokens, N1=size)
            ).item()

        least = minimize_scalar(gap, bounds=(math.log(1e7), math.log(1e15)), method="bounded", options={"xatol": 1e-9})
        yield follows(
            f"Section 5.1, smallest gap L_moe - L_upcycled at N1 = {name}",
            {"nats": float(least.fun), "at D (B tokens)": math.exp(least.x) / B},
            "D1 = D2 = D, Table 2",
        )


def _other_criteria(evidence: Evidence) -> Iterator[AuditItem]:
    central = evidence.central
    d1, d2 = 1e9, 1e10
    target = central.upcycled.loss(D1=d1, D2=d2, N1=SIZE).item()
    moe = central.need("moe")
    log = brentq(lambda x: moe.loss(D=math.exp(x), N1=SIZE).item() - target, math.log(1e6), math.log(1e15))
    needed = math.exp(float(log))
    yield follows(
        "Section 5.1, tokens from scratch that match D1 = 1B, D2 = 10B at N1 = 1e9",
        {"B tokens": needed / B, "of D1": needed / d1, "of D2": needed / d2},
        "Table 2",
        "efficient by the paper's criterion (more than D1), a loss for who spends D2",
    )
    most = float(largest_budget(evidence, "1B"))
    for size, budgets in (
        (1e9, (1e9, 1e10, most, 1e11, 1e12)),
        (7e9, (1e9, 1e10, most, 1e11, 1e12, LLAMA2_TOKENS)),
    ):
        roots = {tokens: threshold_d2(central, size, tokens).roots for tokens in budgets}
        yield follows(
            f"Section 5.1, D2 above which from scratch on D2 tokens is ahead, N1 = {plain_number(size, 1)} (B tokens)",
            {f"D1 = {tokens / B:,.0f}B": root[0] / B if (root := roots[tokens]) else math.nan for tokens in budgets},
            "L_moe(D2) = L_upcycled(D1, D2), Table 2",
        )


def _literature() -> Iterator[AuditItem]:
    dense, more, scratch = 2.0, 0.4, 2.4
    source = "D1 = 2T, D2 = 0.4T, from scratch 2.4T"
    label = "Section 5.1, Komatsuzaki et al., share of the sunk cost"
    yield number_item(label, "120", 100 * scratch / dense, source, suffix=" %")
    label = "Section 5.1, Komatsuzaki et al., tokens saved"
    yield number_item(label, "2", scratch - more, source, suffix="T")
    yield lost("Sections 5.1 and 6, Muennighoff et al., Wei et al.", "below 100 %; twice", "results of other works", 2)
