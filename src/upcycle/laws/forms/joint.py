"""Laws that also depend on the model's size: Equation 12, what the paper tried beside it, and what lies beyond.

D1, D2 and the like are in tokens; N1 is the dense model's size in non-embedding parameters; losses are in nats.
"""

from __future__ import annotations

from upcycle.laws.forms.configuration import of_sparsity
from upcycle.laws.forms.tokens import EXPONENT_OF_D2, OF_UPCYCLED, two_stages
from upcycle.laws.law import Law
from upcycle.laws.registry import (
    INTERACTION,
    OFFSET,
    exponent_parameter,
    form,
    interaction_parameter,
    register,
    scale,
    special_case,
)

_OF_N1 = (
    scale("B", "loss that a larger model would save", "nats at N1 = 1 parameter"),
    exponent_parameter("beta", "exponent of N1"),
)


@register
def power_in_size() -> Law:
    """Requirement 3. L(N1) = B N1^-beta + E, at fixed D1 and D2 (section E.1)."""
    return form("Requirement 3", "L = B N1^-beta + E", *_OF_N1)


@register
def joint() -> Law:
    """Equation 12. L(D1, D2, N1) = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + B N1^-beta + E.

    Printed with beta2; Table 2 names it beta.
    """
    return form(
        "Equation 12",
        "L = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + B N1^-beta + E",
        *two_stages("1 token", "scaling factor of the tokens"),
        *_OF_N1,
        **OF_UPCYCLED,
    )


@register
def joint_no_interaction() -> Law:
    """The special case alpha3 = 0 of Equation 12."""
    return special_case(
        joint(), "alpha3", "Equation 12 with alpha3 = 0", "L = A D1^-alpha1 D2^-alpha2 + B N1^-beta + E"
    )


@register
def joint_offset() -> Law:
    """Requirement 4. Equation 12 with a fitted offset D0: at D2 = 0 it is A D1^-alpha1 + B N1^-beta + E, Equation 3.

    As printed, Equation 12 diverges at D2 = 0, and with 1 + D2 it meets Equation 3 at one token only.
    """
    return form(
        "Equation 12 with an offset",
        "L = A D1^-alpha1 (1 + D2/D0)^(-alpha2 + alpha3 ln D1) + B N1^-beta + E",
        *two_stages("0", "scaling factor of the tokens", "D2 >> D0"),
        OFFSET,
        *_OF_N1,
        **OF_UPCYCLED,
    )


@register
def joint_rejected() -> Law:
    """Equation 19. L = A D1^-alpha1 + B D2^-alpha2 N1^(-beta + alpha3 ln D2) + E, which the paper rejects (E.2).

    Printed with N2 among the arguments and beta2 as exponent; the formula uses N1 and the text reports beta.
    """
    return form(
        "Equation 19",
        "L = A D1^-alpha1 + B D2^-alpha2 N1^(-beta + alpha3 ln D2) + E",
        scale("A", "loss that more dense training would save", "nats at D1 = 1 token"),
        exponent_parameter("alpha1", "exponent of D1"),
        scale("B", "scaling factor of D2 and N1", "nats at D2 = 1 token, N1 = 1 parameter"),
        exponent_parameter("alpha2", "exponent of D2 at N1 = 1 parameter", starts=(-0.1, 0.05, 0.3)),
        exponent_parameter("beta", "exponent of N1 at D2 = 1 token", starts=(-0.1, 0.05, 0.3)),
        interaction_parameter("alpha3", "N1", "D2", 0.01),
    )


@register
def unified() -> Law:
    """Section E.3. One law for dense models, MoEs from scratch and upcycled models: it "does not fit well".

    The paper prints no formula. Ours joins Equations 3 and 12: L = A (1 + T1)^-alpha1 (1 + T2)^(-alpha2 + alpha3 ln(1 +
    T1)) + B N1^-beta + E, where T1 and T2 are the tokens seen as a dense model and as a mixture: (D, 0) for dense
    training, (0, D) for a MoE from scratch, (D1, D2) for upcycling.
    """
    return form(
        "Section E.3",
        "L = A (1 + T1)^-alpha1 (1 + T2)^(-alpha2 + alpha3 ln(1 + T1)) + B N1^-beta + E",
        scale("A", "scaling factor of the tokens", "nats at T1 = T2 = 0"),
        exponent_parameter("alpha1", "exponent of tokens as a dense model"),
        exponent_parameter("alpha2", "exponent of tokens as a mixture"),
        INTERACTION,
        *_OF_N1,
    )


@register
def joint_configuration() -> Law:
    """Equations 11 and 12 in one: L = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + B N1^-beta + F P^-beta1 + E.

    The extension that the paper's footnote 3 leaves to others. At one mixture it is Equation 12, whose floor holds
    F P^-beta1; at fixed D1 and D2 it is Equation 11 with N1 in place of N2.
    """
    return form(
        "Equations 11 and 12 in one",
        "L = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + B N1^-beta + F P^-beta1 + E",
        *two_stages("1 token", "scaling factor of the tokens"),
        *_OF_N1,
        *of_sparsity("F"),
        derived=EXPONENT_OF_D2,
    )
