"""Laws of tokens: training from scratch, and two-stage training at one model size (Equations 1, 3, 7 to 10, 16).

D, D1 and D2 are in tokens, N in non-embedding parameters, losses in nats; logarithms are natural.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from numpy import log

from upcycle.laws.law import Box, Coefficient, Derived, Law, Parameter, ParameterSource
from upcycle.laws.registry import INTERACTION, OFFSET, exponent_parameter, form, register, scale, special_case
from upcycle.laws.terms import Array


def _exponent_of_D2(at: int) -> Callable[[Mapping[str, float], Box], float]:
    return lambda values, box: values["alpha2"] - values["alpha3"] * math.log(box["D1"][at])


def _exhausting_D1(values: Mapping[str, float], box: Box) -> float:
    ratio = values["alpha2"] / values["alpha3"] if values["alpha3"] > 0 else math.inf
    return math.exp(ratio) if ratio < 700 else math.inf


EXPONENT_OF_D2 = (
    Derived("exponent_at_smallest_D1", "1", "alpha2 - alpha3 ln D1 at the smallest D1 fitted", _exponent_of_D2(0)),
    Derived("exponent_at_largest_D1", "1", "alpha2 - alpha3 ln D1 at the largest D1 fitted", _exponent_of_D2(1)),
    Derived(
        "exhausting_D1",
        "tokens",
        "D1 at which the exponent of D2 is 0: more upcycled training gains nothing",
        _exhausting_D1,
    ),
)
OF_UPCYCLED: dict[str, Any] = {"decides": "upcycled", "derived": EXPONENT_OF_D2}
"""What the laws of D1 and D2 that decisions may use have in common."""


@register
def chinchilla() -> Law:
    """Equation 3. L(D, N) = A D^-alpha + B N^-beta + E, for dense models and MoEs trained from scratch.

    In this project's tables N is the dense model's size N1 for both, as in the comparison at fixed N1 of Equation 13.
    """

    def share_of(name: str) -> Callable[[Mapping[str, float], Box], float]:
        return lambda values, box: values[name] / (values["alpha"] + values["beta"])

    return form(
        "Equation 3",
        "L = A D^-alpha + B N^-beta + E",
        scale("A", "loss that more data would save", "nats at D = 1 token"),
        exponent_parameter("alpha", "exponent of D"),
        scale("B", "loss that a larger model would save", "nats at N = 1 parameter"),
        exponent_parameter("beta", "exponent of N"),
        decides="scratch",
        derived=(
            Derived("optimal_D_exponent", "1", "compute-optimal D grows as FLOPs to this power", share_of("beta")),
            Derived("optimal_N_exponent", "1", "compute-optimal N grows as FLOPs to this power", share_of("alpha")),
        ),
    )


def _power_of(tokens: str) -> tuple[Parameter, ...]:
    """A and alpha of a law of one input. The exponent alone decides the curve: few points leave it anywhere between."""
    starts = (0.02, 0.1, 0.3, 0.6, 1.2, 2.0)
    return (
        scale("A", "scaling factor", f"nats at {tokens} = 1 token"),
        exponent_parameter("alpha", f"exponent of {tokens}", starts=starts),
    )


@register
def power() -> Law:
    """Equation 7. L(D2) = A D2^-alpha + E, at fixed D1."""
    return form("Equation 7", "L = A D2^-alpha + E", *_power_of("D2"))


@register
def power_in_tokens() -> Law:
    """The same for training from scratch at one model size, L(D) = A D^-alpha + E (section 2.2)."""
    return form("Section 2.2", "L = A D^-alpha + E", *_power_of("D"), decides="scratch")


def two_stages(least: str, meaning: str = "scaling factor", of_D2: str = "D2") -> tuple[Parameter, ...]:
    """A, alpha1, alpha2, alpha3 of a term in D1 and D2; A and alpha1 are meant at D2 = `least`: 1 token, or 0."""
    at = "D1 = D2 = 1 token" if least == "1 token" else f"D1 = 1 token, D2 = {least}"
    return (
        scale("A", meaning, f"nats at {at}"),
        exponent_parameter("alpha1", f"exponent of D1 at D2 = {least}"),
        exponent_parameter("alpha2", f"exponent of {of_D2} at D1 = 1 token"),
        INTERACTION,
    )


@register
def multiplicative_limit() -> Law:
    """Equation 1. L(D1, D2) = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + E: Equation 8 at D2 >> 1."""
    return form(
        "Equation 1",
        "L = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + E",
        *two_stages("1 token"),
        **OF_UPCYCLED,
    )


@register
def bilinear() -> Law:
    """Section C.3. ln(L - E) is bilinear: c - alpha1 ln D1 - alpha2 ln D2 + alpha3 ln D1 ln D2.

    The same curves as Equation 1, with c = ln A. The signs are those of Equation 8; C.3 prints them all positive.
    """

    def terms(D1: Array, D2: Array) -> tuple[dict[str, Coefficient], ...]:
        factor: dict[str, Coefficient] = {"c": 1.0, "alpha1": -log(D1), "alpha2": -log(D2), "alpha3": log(D1) * log(D2)}
        return factor, {"E": 1.0}

    limit = multiplicative_limit()
    return replace(
        limit,
        label="Section C.3",
        formula="ln(L - E) = c - alpha1 ln D1 - alpha2 ln D2 + alpha3 ln D1 ln D2",
        parameters=(
            Parameter("c", "exponent", "1", "ln(L - E) at D1 = D2 = 1 token", (-10.0, 40.0), starts=(1.0, 5.0, 15.0)),
            *limit.parameters[1:],
        ),
        terms=terms,
    )


@register
def multiplicative() -> Law:
    """Equation 8. L(D1, D2) = A D1^-alpha1 (1 + D2)^(-alpha2 + alpha3 ln D1) + E: the paper's choice."""
    return form(
        "Equation 8",
        "L = A D1^-alpha1 (1 + D2)^(-alpha2 + alpha3 ln D1) + E",
        *two_stages("0"),
        **OF_UPCYCLED,
    )


@register
def multiplicative_no_interaction() -> Law:
    """The special case alpha3 = 0 of the multiplicative form (section 4.1, Table 1)."""
    return special_case(
        multiplicative(), "alpha3", "Equation 8 with alpha3 = 0", "L = A D1^-alpha1 (1 + D2)^-alpha2 + E"
    )


@register
def multiplicative_offset() -> Law:
    """Equation 8 with a fitted offset D0: L = A D1^-alpha1 (1 + D2/D0)^(-alpha2 + alpha3 ln D1) + E.

    At D2 = 0 it is A D1^-alpha1 + E whatever the other parameters, so Requirement 2 holds within reach of the data; in
    Equation 8 the offset is one token. For D2 >> D0 it is Equation 1 with alpha1 + alpha3 ln D0 as exponent of D1. It
    is the same law in any unit of tokens.
    """
    return form(
        "Equation 8 with an offset",
        "L = A D1^-alpha1 (1 + D2/D0)^(-alpha2 + alpha3 ln D1) + E",
        *two_stages("0", of_D2="D2 >> D0"),
        OFFSET,
        **OF_UPCYCLED,
    )


@register
def multiplicative_offset_no_interaction() -> Law:
    """The special case alpha3 = 0 of the form with an offset."""
    return special_case(
        multiplicative_offset(),
        "alpha3",
        "Equation 8 with an offset and alpha3 = 0",
        "L = A D1^-alpha1 (1 + D2/D0)^-alpha2 + E",
    )


@register
def additive() -> Law:
    """Equation 9. L(D1, D2) = A D1^-alpha1 + F (1 + D2)^(-alpha2 + alpha3 ln D1) + E.

    Unlike Equation 8, this form is not the same in other units of D2: the interaction multiplies a change of unit by a
    power of D1 that no other parameter can absorb. Tokens are the paper's units.
    """
    return form(
        "Equation 9",
        "L = A D1^-alpha1 + F (1 + D2)^(-alpha2 + alpha3 ln D1) + E",
        scale("A", "loss that more dense training would save", "nats at D1 = 1 token"),
        exponent_parameter("alpha1", "exponent of D1"),
        scale("F", "loss that more upcycled training would save", "nats at D2 = 0"),
        exponent_parameter("alpha2", "exponent of D2 at D1 = 1 token"),
        INTERACTION,
        **OF_UPCYCLED,
    )


@register
def additive_no_interaction() -> Law:
    """The special case alpha3 = 0 of the additive form (section 4.1, Table 1)."""
    return special_case(additive(), "alpha3", "Equation 9 with alpha3 = 0", "L = A D1^-alpha1 + F (1 + D2)^-alpha2 + E")


@register
def exponent_vs_d1() -> Law:
    """Equation 10. -alpha(D1) = gamma ln D1 + E', a line through the exponents of Equation 7; least squares."""

    def terms(D1: Array) -> tuple[dict[str, Coefficient], ...]:
        return ({"gamma": log(D1), "E_prime": 1.0},)

    return Law(
        name="",
        label="Equation 10",
        formula="-alpha(D1) = gamma ln D1 + E'",
        inputs=("D1",),
        parameters=(
            Parameter(
                "gamma",
                "coefficient",
                "1",
                "growth of the exponent per e-fold of D1",
                bounds=(-1.0, 1.0),
                starts=(0.0,),
            ),
            Parameter("E_prime", "coefficient", "1", "exponent at D1 = 1 token", bounds=(-20.0, 20.0), starts=(0.0,)),
        ),
        terms=terms,
        response="minus_alpha",
        line=True,
        delta=math.inf,
        source=ParameterSource("power", "alpha", sign=-1.0),
    )


@register
def scale_vs_d1() -> Law:
    """Equation 16. A(D1) = C D1^-eta, a power law through the scaling factors of Equation 7; least squares on ln A."""
    return form(
        "Equation 16",
        "A(D1) = C D1^-eta",
        Parameter("C", "scale", "nats at D1 = D2 = 1 token", "scaling factor", bounds=(1e-6, 1e100), starts=(1.0,)),
        Parameter("eta", "exponent", "1", "exponent of D1 in the scaling factor", bounds=(-20.0, 20.0), starts=(0.5,)),
        response="A",
        delta=math.inf,
        source=ParameterSource("power", "A"),
    )
