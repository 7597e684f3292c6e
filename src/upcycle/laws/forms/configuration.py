"""Laws of the mixture's configuration at fixed D1 and D2 (section 4.2, D.1).

P = N_total / N2 is the sparsity (dimensionless, Equations 5 and 6), N2 the non-embedding parameters that a token uses.
"""

from __future__ import annotations

from numpy import log, log1p

from upcycle.laws.law import Law, Parameter
from upcycle.laws.registry import FLOOR, Term, exponent_parameter, register, scale
from upcycle.laws.terms import Array

INTERACTION_OF_P = Parameter(
    "beta3",
    "exponent",
    "1",
    "how much the exponent of N2 shrinks per e-fold of P",
    bounds=(-0.5, 0.5),
    starts=(-0.02, 0.0, 0.02),
)
INPUTS = ("P", "N2")


@register
def configuration() -> Law:
    """Equation 11. L(P, N2) = A P^-beta1 + F N2^-beta2 + E: the paper's choice among the forms of D.1."""

    def terms(P: Array, N2: Array) -> tuple[Term, ...]:
        return {"A": 1.0, "beta1": -log(P)}, {"F": 1.0, "beta2": -log(N2)}, {"E": 1.0}

    return Law(
        name="configuration",
        label="Equation 11",
        formula="L = A P^-beta1 + F N2^-beta2 + E",
        tex=r"$L = A\,P^{-\beta_1} + F\,N_2^{-\beta_2} + E$",
        inputs=INPUTS,
        parameters=(
            scale("A", "loss that sparsity would save", "nats at P = 1"),
            exponent_parameter("beta1", "exponent of P", starts=(0.3, 1.0, 2.0)),
            scale("F", "loss that active parameters would save", "nats at N2 = 1 parameter"),
            exponent_parameter("beta2", "exponent of N2"),
            FLOOR,
        ),
        terms=terms,
    )


@register
def configuration_multiplicative() -> Law:
    """Equation 17. L(P, N2) = A P^-beta1 (1 + N2)^(-beta2 + beta3 ln P) + E, multiplicative."""

    def terms(P: Array, N2: Array) -> tuple[Term, ...]:
        factor: Term = {"A": 1.0, "beta1": -log(P), "beta2": -log1p(N2), "beta3": log(P) * log1p(N2)}
        return factor, {"E": 1.0}

    return Law(
        name="configuration_multiplicative",
        label="Equation 17",
        formula="L = A P^-beta1 (1 + N2)^(-beta2 + beta3 ln P) + E",
        tex=r"$L = A\,P^{-\beta_1}(1 + N_2)^{-\beta_2 + \beta_3 \ln P} + E$",
        inputs=INPUTS,
        parameters=(
            scale("A", "scaling factor", "nats at P = 1, N2 = 0"),
            exponent_parameter("beta1", "exponent of P at N2 = 0", starts=(0.0, 0.3, 1.0)),
            exponent_parameter("beta2", "exponent of N2 at P = 1"),
            INTERACTION_OF_P,
            FLOOR,
        ),
        terms=terms,
    )


@register
def configuration_multiplicative_no_interaction() -> Law:
    """The special case beta3 = 0 of the multiplicative form in P and N2 (D.1)."""
    return configuration_multiplicative().without(
        "configuration_multiplicative_no_interaction",
        drop="beta3",
        label="Equation 17 with beta3 = 0",
        formula="L = A P^-beta1 (1 + N2)^-beta2 + E",
        tex=r"$L = A\,P^{-\beta_1}(1 + N_2)^{-\beta_2} + E$",
    )


@register
def configuration_additive() -> Law:
    """Equation 18. L(P, N2) = A P^-beta1 + F (1 + N2)^(-beta2 + beta3 ln P) + E, additive."""

    def terms(P: Array, N2: Array) -> tuple[Term, ...]:
        return (
            {"A": 1.0, "beta1": -log(P)},
            {"F": 1.0, "beta2": -log1p(N2), "beta3": log(P) * log1p(N2)},
            {"E": 1.0},
        )

    return Law(
        name="configuration_additive",
        label="Equation 18",
        formula="L = A P^-beta1 + F (1 + N2)^(-beta2 + beta3 ln P) + E",
        tex=r"$L = A\,P^{-\beta_1} + F\,(1 + N_2)^{-\beta_2 + \beta_3 \ln P} + E$",
        inputs=INPUTS,
        parameters=(
            scale("A", "loss that sparsity would save", "nats at P = 1"),
            exponent_parameter("beta1", "exponent of P", starts=(0.3, 1.0, 2.0)),
            scale("F", "loss that active parameters would save", "nats at N2 = 0"),
            exponent_parameter("beta2", "exponent of N2 at P = 1"),
            INTERACTION_OF_P,
            FLOOR,
        ),
        terms=terms,
    )


@register
def configuration_additive_no_interaction() -> Law:
    """The special case beta3 = 0 of the additive form in P and N2: Equation 11, up to the 1 beside N2 (D.1)."""
    return configuration_additive().without(
        "configuration_additive_no_interaction",
        drop="beta3",
        label="Equation 18 with beta3 = 0",
        formula="L = A P^-beta1 + F (1 + N2)^-beta2 + E",
        tex=r"$L = A\,P^{-\beta_1} + F\,(1 + N_2)^{-\beta_2} + E$",
    )
