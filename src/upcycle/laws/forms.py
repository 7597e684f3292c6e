"""Every functional form, each a small documented function; this is the one place to add one.

A law is found by its function's name (`LAWS`). D, D1 and D2 are in tokens, N1 in non-embedding parameters, losses in
nats; logarithms are natural.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from numpy import log, log1p

from upcycle.errors import UserError, nearest
from upcycle.laws.law import Box, Derived, Law, Parameter, Source
from upcycle.laws.terms import Array

LAWS: dict[str, Law] = {}
"""Every law by name."""

Term = dict[str, Array | float]


def register(make: Callable[[], Law]) -> Callable[[], Law]:
    """Enter a law under its function's name."""
    law = make()
    if law.name != make.__name__ or law.name in LAWS:
        raise ValueError(f"law `{law.name}` must be made once, by a function of its name")
    LAWS[law.name] = law
    return make


def get_law(name: str) -> Law:
    """A law by name.

    Raises `UserError` naming the nearest.
    """
    if name not in LAWS:
        raise UserError(f"unknown law `{name}`; {nearest(name, LAWS)}")
    return LAWS[name]


def scale(name: str, meaning: str, unit: str) -> Parameter:
    """A positive factor of a term."""
    return Parameter(name, "scale", unit, meaning, bounds=(1e-3, 1e15), starts=(0.1, 0.3, 0.9))


def exponent(name: str, meaning: str, starts: tuple[float, ...] = (0.05, 0.3, 1.0)) -> Parameter:
    """An exponent, signed so that a falling loss has a positive one."""
    return Parameter(name, "exponent", "1", meaning, bounds=(-1.0, 5.0), starts=starts)


FLOOR = Parameter("E", "floor", "nats", "irreducible loss", bounds=(0.0, 10.0), starts=(0.1, 0.3, 0.9))
INTERACTION = Parameter(
    "alpha3",
    "exponent",
    "1",
    "how much the exponent of D2 shrinks per e-fold of D1",
    bounds=(-0.5, 0.5),
    starts=(-0.01, 0.0, 0.01),
)


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


@register
def chinchilla() -> Law:
    """Equation 3. L(D, N) = A D^-alpha + B N^-beta + E, for dense models and MoEs trained from scratch.

    N is the dense model's size N1 for both, as in the comparison at fixed N1 of Equation 13.
    """

    def terms(D: Array, N1: Array) -> tuple[Term, ...]:
        return {"A": 1.0, "alpha": -log(D)}, {"B": 1.0, "beta": -log(N1)}, {"E": 1.0}

    def share_of(name: str) -> Callable[[Mapping[str, float], Box], float]:
        return lambda values, box: values[name] / (values["alpha"] + values["beta"])

    return Law(
        name="chinchilla",
        label="Equation 3",
        formula="L = A D^-alpha + B N1^-beta + E",
        tex=r"$L = A\,D^{-\alpha} + B\,N_1^{-\beta} + E$",
        inputs=("D", "N1"),
        parameters=(
            scale("A", "loss that more data would save", "nats at D = 1 token"),
            exponent("alpha", "exponent of D"),
            scale("B", "loss that a larger model would save", "nats at N1 = 1 parameter"),
            exponent("beta", "exponent of N1"),
            FLOOR,
        ),
        terms=terms,
        derived=(
            Derived("optimal_D_exponent", "1", "compute-optimal D grows as FLOPs to this power", share_of("beta")),
            Derived("optimal_N_exponent", "1", "compute-optimal N1 grows as FLOPs to this power", share_of("alpha")),
        ),
    )


@register
def power() -> Law:
    """Equation 7. L(D2) = A D2^-alpha + E, at fixed D1."""

    def terms(D2: Array) -> tuple[Term, ...]:
        return {"A": 1.0, "alpha": -log(D2)}, {"E": 1.0}

    return Law(
        name="power",
        label="Equation 7",
        formula="L = A D2^-alpha + E",
        tex=r"$L = A\,D_2^{-\alpha} + E$",
        inputs=("D2",),
        parameters=(
            scale("A", "scaling factor", "nats at D2 = 1 token"),
            exponent("alpha", "exponent of D2", starts=(0.02, 0.1, 0.3, 0.6, 1.2, 2.0)),
            FLOOR,
        ),
        terms=terms,
    )


@register
def multiplicative() -> Law:
    """Equation 8. L(D1, D2) = A D1^-alpha1 (1 + D2)^(-alpha2 + alpha3 ln D1) + E: the paper's choice."""

    def terms(D1: Array, D2: Array) -> tuple[Term, ...]:
        factor: Term = {"A": 1.0, "alpha1": -log(D1), "alpha2": -log1p(D2), "alpha3": log(D1) * log1p(D2)}
        return factor, {"E": 1.0}

    return Law(
        name="multiplicative",
        label="Equation 8",
        formula="L = A D1^-alpha1 (1 + D2)^(-alpha2 + alpha3 ln D1) + E",
        tex=r"$L = A\,D_1^{-\alpha_1}(1 + D_2)^{-\alpha_2 + \alpha_3 \ln D_1} + E$",
        inputs=("D1", "D2"),
        parameters=(
            scale("A", "scaling factor", "nats at D1 = 1 token, D2 = 0"),
            exponent("alpha1", "exponent of D1 at D2 = 0"),
            exponent("alpha2", "exponent of D2 at D1 = 1 token"),
            INTERACTION,
            FLOOR,
        ),
        terms=terms,
        derived=EXPONENT_OF_D2,
    )


@register
def multiplicative_no_interaction() -> Law:
    """The special case alpha3 = 0 of the multiplicative form (section 4.1, Table 1)."""
    return multiplicative().without(
        "multiplicative_no_interaction",
        drop="alpha3",
        label="Equation 8 with alpha3 = 0",
        formula="L = A D1^-alpha1 (1 + D2)^-alpha2 + E",
        tex=r"$L = A\,D_1^{-\alpha_1}(1 + D_2)^{-\alpha_2} + E$",
    )


@register
def additive() -> Law:
    """Equation 9. L(D1, D2) = A D1^-alpha1 + F (1 + D2)^(-alpha2 + alpha3 ln D1) + E.

    Unlike Equation 8, this form is not the same in other units of D2: the interaction multiplies a change of unit by a
    power of D1 that no other parameter can absorb. Tokens are the paper's units.
    """

    def terms(D1: Array, D2: Array) -> tuple[Term, ...]:
        return (
            {"A": 1.0, "alpha1": -log(D1)},
            {"F": 1.0, "alpha2": -log1p(D2), "alpha3": log(D1) * log1p(D2)},
            {"E": 1.0},
        )

    return Law(
        name="additive",
        label="Equation 9",
        formula="L = A D1^-alpha1 + F (1 + D2)^(-alpha2 + alpha3 ln D1) + E",
        tex=r"$L = A\,D_1^{-\alpha_1} + F\,(1 + D_2)^{-\alpha_2 + \alpha_3 \ln D_1} + E$",
        inputs=("D1", "D2"),
        parameters=(
            scale("A", "loss that more dense training would save", "nats at D1 = 1 token"),
            exponent("alpha1", "exponent of D1"),
            scale("F", "loss that more upcycled training would save", "nats at D2 = 0"),
            exponent("alpha2", "exponent of D2 at D1 = 1 token"),
            INTERACTION,
            FLOOR,
        ),
        terms=terms,
        derived=EXPONENT_OF_D2,
    )


@register
def additive_no_interaction() -> Law:
    """The special case alpha3 = 0 of the additive form (section 4.1, Table 1)."""
    return additive().without(
        "additive_no_interaction",
        drop="alpha3",
        label="Equation 9 with alpha3 = 0",
        formula="L = A D1^-alpha1 + F (1 + D2)^-alpha2 + E",
        tex=r"$L = A\,D_1^{-\alpha_1} + F\,(1 + D_2)^{-\alpha_2} + E$",
    )


@register
def exponent_vs_d1() -> Law:
    """Equation 10. -alpha(D1) = gamma ln D1 + E', a line through the exponents of Equation 7; least squares."""

    def terms(D1: Array) -> tuple[Term, ...]:
        return ({"gamma": log(D1), "E_prime": 1.0},)

    return Law(
        name="exponent_vs_d1",
        label="Equation 10",
        formula="-alpha(D1) = gamma ln D1 + E'",
        tex=r"$-\alpha(D_1) = \gamma \ln D_1 + E'$",
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
        response_unit="1",
        line=True,
        delta=math.inf,
        source=Source("power", "alpha", sign=-1.0),
    )


@register
def scale_vs_d1() -> Law:
    """Equation 16. A(D1) = C D1^-eta, a power law through the scaling factors of Equation 7; least squares on ln A."""

    def terms(D1: Array) -> tuple[Term, ...]:
        return ({"C": 1.0, "eta": -log(D1)},)

    return Law(
        name="scale_vs_d1",
        label="Equation 16",
        formula="A(D1) = C D1^-eta",
        tex=r"$A(D_1) = C\,D_1^{-\eta}$",
        inputs=("D1",),
        parameters=(
            Parameter("C", "scale", "nats at D1 = D2 = 1 token", "scaling factor", bounds=(1e-6, 1e100), starts=(1.0,)),
            Parameter(
                "eta", "exponent", "1", "exponent of D1 in the scaling factor", bounds=(-20.0, 20.0), starts=(0.5,)
            ),
        ),
        terms=terms,
        response="A",
        delta=math.inf,
        source=Source("power", "A"),
    )
