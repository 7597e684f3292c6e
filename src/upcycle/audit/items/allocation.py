"""Audit of the allocation of compute: Equation 14 and F.3, the Llama2 example, the comparison of section 5.2."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from upcycle.audit.items.laws import LLAMA2_TOKENS, SUNK
from upcycle.audit.items.models import EIGHT, shape
from upcycle.audit.items.training import largest_budget
from upcycle.audit.printed import TABLE_3
from upcycle.audit.verdict import AuditItem, Evidence, Texts, box, plain_number
from upcycle.decisions.allocation import UpcycledOptimum, equation_14, optimal_upcycled, three_way
from upcycle.decisions.published import TABLE_2
from upcycle.study.counting import n1, n2

BUDGETS = np.geomspace(1e18, 1e26, 17)
"""FLOPs at which the statements of section 5.2 and F.2 are looked at."""
_TEXTS = Texts.of("allocation")


def allocation_items(evidence: Evidence) -> Iterator[AuditItem]:
    """All items of this topic."""
    ratio = n2(shape("1B"), EIGHT) / n1(shape("1B"))
    optimum = equation_14(evidence.central.upcycled.values, LLAMA2_TOKENS, ratio)
    yield from _closed_forms(evidence, optimum, ratio)
    yield from _exponents(evidence, optimum)
    for name, size in (("7B", 7e9), ("13B", 13e9), ("70B", 70e9)):
        tokens = optimum.d2_of_n1(size)
        values = {"D2": tokens, "C2": 6 * ratio * size * tokens, "D2 / D1": tokens / LLAMA2_TOKENS}
        yield _TEXTS.follows("llama2", values, name=name)
    yield from _from_nothing(evidence)


def _closed_forms(evidence: Evidence, optimum: UpcycledOptimum, ratio: float) -> Iterator[AuditItem]:
    yield _TEXTS.number("cost_ratio", 6 * ratio)
    for flops in (1e20, 1e22):
        best = optimal_upcycled(evidence.central, LLAMA2_TOKENS, flops)
        errors = {
            "relative difference of D2": best.d / optimum.d2(flops) - 1,
            "of N1": best.n1 / optimum.n1(flops) - 1,
        }
        holds = max(abs(error) for error in errors.values()) < 1e-4
        # The digits of a difference this small are the minimiser's: they change with the machine.
        same = "the same to 1 part in 10,000" if holds else ""
        yield _TEXTS.claim("closed_form", holds, errors, recomputed=same, count=2, flops=plain_number(flops))
    budgets = [1e19, 1e21, 1e23]
    d2, size = (np.log(np.array([form(value) for value in budgets])) for form in (optimum.d2, optimum.n1))
    step = np.diff(np.log(budgets))
    powers = np.allclose(np.diff(d2) / step, optimum.a) and np.allclose(np.diff(size) / step, optimum.b)
    yield _TEXTS.claim("exponents", powers, {"of D2": optimum.a, "of N1": optimum.b}, count=2)
    forward = optimum.G * (optimum.G * np.exp(size)) ** (optimum.a / optimum.b)
    backward = (np.exp(d2) / optimum.G) ** (optimum.b / optimum.a) / optimum.G
    related = np.allclose(forward, np.exp(d2)) and np.allclose(backward, np.exp(size))
    yield _TEXTS.claim("relations", related, recomputed="the same", count=2)
    sunk = {"1B": 1e9, "100B": 1e11, "10T": 1e13}
    alphas = {name: equation_14(evidence.central.upcycled.values, d1).alpha_eff for name, d1 in sunk.items()}
    yield _TEXTS.claim("falling", alphas["1B"] > alphas["100B"] > alphas["10T"], alphas)


def _exponents(evidence: Evidence, optimum: UpcycledOptimum) -> Iterator[AuditItem]:
    log = math.log(LLAMA2_TOKENS)
    cells, values = TABLE_2["upcycled"], evidence.central.upcycled.values
    low, high = box(lambda a2, a3, beta: beta / (a2 - a3 * log), cells["alpha2"], cells["alpha3"], cells["beta"])
    yield _TEXTS.number("power", optimum.exponent, allowed=(low, high))
    yield _TEXTS.number("quadratic", optimum.exponent, allowed=(low, high))
    literal = values["beta"] / values["alpha2"] - values["alpha3"] * log
    ratios = {"as printed": literal, "a / b": optimum.a / optimum.b}
    yield _TEXTS.claim("last_d2", math.isclose(literal, optimum.exponent), ratios)
    inverse = (values["alpha2"] - values["alpha3"] * log) / values["beta"]
    yield _TEXTS.claim("last_n1", math.isclose(inverse, optimum.b / optimum.a), {"b / a": optimum.b / optimum.a})
    constants = {"α_eff": optimum.alpha_eff, "A_eff": optimum.A_eff, "G": optimum.G, "a": optimum.a, "b": optimum.b}
    yield _TEXTS.follows("constants", constants)
    yield _TEXTS.follows("power_range", {"from": low, "to": high})


def _from_nothing(evidence: Evidence) -> Iterator[AuditItem]:
    table = three_way(evidence.central, BUDGETS)
    behind = table["two_stage_loss"] - table[["dense_loss", "moe_loss"]].min(axis=1)
    wins = table.loc[behind < 0, "flops"]
    budgets = f"{len(BUDGETS)} budgets from {plain_number(BUDGETS[0])} to {plain_number(BUDGETS[-1])} FLOPs"
    values = {
        "smallest lead (nats)": behind.min(),
        "largest": behind.max(),
        "budgets with upcycling ahead": len(wins),
    }
    yield _TEXTS.claim("from_nothing", wins.empty, values, budgets=budgets, first=wins.min(), last=wins.max())
    lead = table["dense_loss"] - table["moe_loss"]
    fails = table.loc[lead < 0, "flops"]
    remark = (
        f"by Table 2 the dense model is ahead from {fails.min():.1e} to {fails.max():.1e} FLOPs:"
        " the MoE's law has the smaller exponent of size"
    )
    leads = {
        f"dense less MoE (nats) at {plain_number(flops)}": gap
        for flops, gap in zip(table["flops"][::4], lead[::4], strict=True)
    }
    remark = "" if fails.empty else remark
    yield _TEXTS.claim("moe_scales", lead.iloc[-1] > 0, leads, budgets=budgets, remark=remark)
    at = three_way(evidence.central, np.array([1e21])).iloc[0]
    optima = {"dense N": at["dense_n1"], "dense D": at["dense_d"]}
    optima |= {"tokens per parameter": at["dense_d"] / at["dense_n1"], "MoE N1": at["moe_n1"], "MoE D": at["moe_d"]}
    least = min(largest_budget(evidence, name) / n1(shape(name)) for name in TABLE_3)
    yield _TEXTS.follows("figure_16", optima, largest=plain_number(n1(shape("1B")), 3), per_parameter=least)
    given = equation_14(evidence.central.upcycled.values, SUNK)
    yield _TEXTS.follows("at_10b", {"α_eff": given.alpha_eff, "power of N1 in D2": given.exponent})
