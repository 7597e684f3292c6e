"""Laws of the mixture's configuration at fixed D1 and D2 (section 4.2, D.1).

P = N_total / N2 is the sparsity (dimensionless, Equations 5 and 6), N2 the non-embedding parameters that a token uses.
"""

from __future__ import annotations

from upcycle.laws.law import Law, Parameter
from upcycle.laws.registry import exponent_parameter, form, interaction_parameter, register, scale, special_case

INTERACTION_OF_P = interaction_parameter("beta3", "N2", "P", 0.02)


def of_sparsity(factor: str) -> tuple[Parameter, ...]:
    """The factor, of this name, and beta1 of a term in P alone."""
    return (
        scale(factor, "loss that sparsity would save", "nats at P = 1"),
        exponent_parameter("beta1", "exponent of P", starts=(0.3, 1.0, 2.0)),
    )


@register
def configuration() -> Law:
    """Equation 11. L(P, N2) = A P^-beta1 + F N2^-beta2 + E: the paper's choice among the forms of D.1."""
    return form(
        "Equation 11",
        "L = A P^-beta1 + F N2^-beta2 + E",
        *of_sparsity("A"),
        scale("F", "loss that active parameters would save", "nats at N2 = 1 parameter"),
        exponent_parameter("beta2", "exponent of N2"),
    )


@register
def configuration_multiplicative() -> Law:
    """Equation 17. L(P, N2) = A P^-beta1 (1 + N2)^(-beta2 + beta3 ln P) + E, multiplicative."""
    return form(
        "Equation 17",
        "L = A P^-beta1 (1 + N2)^(-beta2 + beta3 ln P) + E",
        scale("A", "scaling factor", "nats at P = 1, N2 = 0"),
        exponent_parameter("beta1", "exponent of P at N2 = 0", starts=(0.0, 0.3, 1.0)),
        exponent_parameter("beta2", "exponent of N2 at P = 1"),
        INTERACTION_OF_P,
    )


@register
def configuration_multiplicative_no_interaction() -> Law:
    """The special case beta3 = 0 of the multiplicative form in P and N2 (D.1)."""
    return special_case(
        configuration_multiplicative(), "beta3", "Equation 17 with beta3 = 0", "L = A P^-beta1 (1 + N2)^-beta2 + E"
    )


@register
def configuration_additive() -> Law:
    """Equation 18. L(P, N2) = A P^-beta1 + F (1 + N2)^(-beta2 + beta3 ln P) + E, additive."""
    return form(
        "Equation 18",
        "L = A P^-beta1 + F (1 + N2)^(-beta2 + beta3 ln P) + E",
        *of_sparsity("A"),
        scale("F", "loss that active parameters would save", "nats at N2 = 0"),
        exponent_parameter("beta2", "exponent of N2 at P = 1"),
        INTERACTION_OF_P,
    )


@register
def configuration_additive_no_interaction() -> Law:
    """The special case beta3 = 0 of the additive form in P and N2: Equation 11, up to the 1 beside N2 (D.1)."""
    return special_case(
        configuration_additive(), "beta3", "Equation 18 with beta3 = 0", "L = A P^-beta1 + F (1 + N2)^-beta2 + E"
    )
