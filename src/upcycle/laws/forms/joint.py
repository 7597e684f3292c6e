"""Laws that also depend on the model's size: Equation 12, what the paper tried beside it, and what lies beyond.

D1, D2 and the like are in tokens; N1 is the dense model's size in non-embedding parameters; losses are in nats.
"""

from __future__ import annotations

from dataclasses import replace

from numpy import log, log1p

from upcycle.laws.forms.tokens import EXPONENT_OF_D2
from upcycle.laws.law import Law, Shifted
from upcycle.laws.registry import FLOOR, INTERACTION, OFFSET, Term, exponent_parameter, register, scale
from upcycle.laws.terms import Array

_OF_N1 = (
    scale("B", "loss that a larger model would save", "nats at N1 = 1 parameter"),
    exponent_parameter("beta", "exponent of N1"),
)


@register
def power_in_size() -> Law:
    """Requirement 3. L(N1) = B N1^-beta + E, at fixed D1 and D2 (section E.1)."""

    def terms(N1: Array) -> tuple[Term, ...]:
        return {"B": 1.0, "beta": -log(N1)}, {"E": 1.0}

    return Law(
        name="power_in_size",
        label="Requirement 3",
        formula="L = B N1^-beta + E",
        tex=r"$L = B\,N_1^{-\beta} + E$",
        inputs=("N1",),
        parameters=(*_OF_N1, FLOOR),
        terms=terms,
    )


@register
def joint() -> Law:
    """Equation 12. L(D1, D2, N1) = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + B N1^-beta + E.

    Printed with beta2; Table 2 names it beta.
    """

    def terms(D1: Array, D2: Array, N1: Array) -> tuple[Term, ...]:
        factor: Term = {"A": 1.0, "alpha1": -log(D1), "alpha2": -log(D2), "alpha3": log(D1) * log(D2)}
        return factor, {"B": 1.0, "beta": -log(N1)}, {"E": 1.0}

    return Law(
        name="joint",
        label="Equation 12",
        formula="L = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + B N1^-beta + E",
        tex=r"$L = A\,D_1^{-\alpha_1} D_2^{-\alpha_2 + \alpha_3 \ln D_1} + B\,N_1^{-\beta} + E$",
        inputs=("D1", "D2", "N1"),
        decides="upcycled",
        parameters=(
            scale("A", "scaling factor of the tokens", "nats at D1 = D2 = 1 token"),
            exponent_parameter("alpha1", "exponent of D1 at D2 = 1 token"),
            exponent_parameter("alpha2", "exponent of D2 at D1 = 1 token"),
            INTERACTION,
            *_OF_N1,
            FLOOR,
        ),
        terms=terms,
        derived=EXPONENT_OF_D2,
    )


@register
def joint_no_interaction() -> Law:
    """The special case alpha3 = 0 of Equation 12."""
    return joint().without(
        "joint_no_interaction",
        drop="alpha3",
        label="Equation 12 with alpha3 = 0",
        formula="L = A D1^-alpha1 D2^-alpha2 + B N1^-beta + E",
        tex=r"$L = A\,D_1^{-\alpha_1} D_2^{-\alpha_2} + B\,N_1^{-\beta} + E$",
    )


@register
def joint_offset() -> Law:
    """Requirement 4. Equation 12 with a fitted offset D0: at D2 = 0 it is A D1^-alpha1 + B N1^-beta + E, Equation 3.

    As printed, Equation 12 diverges at D2 = 0, and with 1 + D2 it meets Equation 3 at one token only.
    """

    def terms(D1: Array, D2: Array, N1: Array) -> tuple[Term, ...]:
        factor: Term = {
            "A": 1.0,
            "alpha1": -log(D1),
            "alpha2": Shifted(-1.0, D2),
            "alpha3": Shifted(log(D1), D2),
        }
        return factor, {"B": 1.0, "beta": -log(N1)}, {"E": 1.0}

    return Law(
        name="joint_offset",
        label="Equation 12 with an offset",
        formula="L = A D1^-alpha1 (1 + D2/D0)^(-alpha2 + alpha3 ln D1) + B N1^-beta + E",
        tex=r"$L = A\,D_1^{-\alpha_1}(1 + D_2/D_0)^{-\alpha_2 + \alpha_3 \ln D_1} + B\,N_1^{-\beta} + E$",
        inputs=("D1", "D2", "N1"),
        decides="upcycled",
        parameters=(
            scale("A", "scaling factor of the tokens", "nats at D1 = 1 token, D2 = 0"),
            exponent_parameter("alpha1", "exponent of D1 at D2 = 0"),
            exponent_parameter("alpha2", "exponent of D2 >> D0 at D1 = 1 token"),
            INTERACTION,
            OFFSET,
            *_OF_N1,
            FLOOR,
        ),
        terms=terms,
        derived=EXPONENT_OF_D2,
    )


@register
def joint_rejected() -> Law:
    """Equation 19. L = A D1^-alpha1 + B D2^-alpha2 N1^(-beta + alpha3 ln D2) + E, which the paper rejects (E.2).

    Printed with N2 among the arguments and beta2 as exponent; the formula uses N1 and the text reports beta.
    """

    def terms(D1: Array, D2: Array, N1: Array) -> tuple[Term, ...]:
        second: Term = {"B": 1.0, "alpha2": -log(D2), "beta": -log(N1), "alpha3": log(D2) * log(N1)}
        return {"A": 1.0, "alpha1": -log(D1)}, second, {"E": 1.0}

    return Law(
        name="joint_rejected",
        label="Equation 19",
        formula="L = A D1^-alpha1 + B D2^-alpha2 N1^(-beta + alpha3 ln D2) + E",
        tex=r"$L = A\,D_1^{-\alpha_1} + B\,D_2^{-\alpha_2} N_1^{-\beta + \alpha_3 \ln D_2} + E$",
        inputs=("D1", "D2", "N1"),
        parameters=(
            scale("A", "loss that more dense training would save", "nats at D1 = 1 token"),
            exponent_parameter("alpha1", "exponent of D1"),
            scale("B", "scaling factor of D2 and N1", "nats at D2 = 1 token, N1 = 1 parameter"),
            exponent_parameter("alpha2", "exponent of D2 at N1 = 1 parameter", starts=(-0.1, 0.05, 0.3)),
            exponent_parameter("beta", "exponent of N1 at D2 = 1 token", starts=(-0.1, 0.05, 0.3)),
            replace(INTERACTION, meaning="how much the exponent of N1 shrinks per e-fold of D2"),
            FLOOR,
        ),
        terms=terms,
    )


@register
def unified() -> Law:
    """Section E.3. One law for dense models, MoEs from scratch and upcycled models: it "does not fit well".

    The paper prints no formula. Ours joins Equations 3 and 12: L = A (1 + T1)^-alpha1 (1 + T2)^(-alpha2 + alpha3 ln(1 +
    T1)) + B N1^-beta + E, where T1 and T2 are the tokens seen as a dense model and as a mixture: (D, 0) for dense
    training, (0, D) for a MoE from scratch, (D1, D2) for upcycling.
    """

    def terms(T1: Array, T2: Array, N1: Array) -> tuple[Term, ...]:
        factor: Term = {"A": 1.0, "alpha1": -log1p(T1), "alpha2": -log1p(T2), "alpha3": log1p(T1) * log1p(T2)}
        return factor, {"B": 1.0, "beta": -log(N1)}, {"E": 1.0}

    return Law(
        name="unified",
        label="Section E.3",
        formula="L = A (1 + T1)^-alpha1 (1 + T2)^(-alpha2 + alpha3 ln(1 + T1)) + B N1^-beta + E",
        tex=r"$L = A\,(1 + T_1)^{-\alpha_1}(1 + T_2)^{-\alpha_2 + \alpha_3 \ln(1 + T_1)} + B\,N_1^{-\beta} + E$",
        inputs=("T1", "T2", "N1"),
        parameters=(
            scale("A", "scaling factor of the tokens", "nats at T1 = T2 = 0"),
            exponent_parameter("alpha1", "exponent of tokens as a dense model"),
            exponent_parameter("alpha2", "exponent of tokens as a mixture"),
            INTERACTION,
            *_OF_N1,
            FLOOR,
        ),
        terms=terms,
    )


@register
def joint_configuration() -> Law:
    """Equations 11 and 12 in one: L = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + B N1^-beta + F P^-beta1 + E.

    The extension that the paper's footnote 3 leaves to others. At one mixture it is Equation 12, whose floor holds
    F P^-beta1; at fixed D1 and D2 it is Equation 11 with N1 in place of N2.
    """

    def terms(D1: Array, D2: Array, N1: Array, P: Array) -> tuple[Term, ...]:
        factor: Term = {"A": 1.0, "alpha1": -log(D1), "alpha2": -log(D2), "alpha3": log(D1) * log(D2)}
        return factor, {"B": 1.0, "beta": -log(N1)}, {"F": 1.0, "beta1": -log(P)}, {"E": 1.0}

    parameters = joint().parameters
    return Law(
        name="joint_configuration",
        label="Equations 11 and 12 in one",
        formula="L = A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + B N1^-beta + F P^-beta1 + E",
        tex=r"$L = A\,D_1^{-\alpha_1} D_2^{-\alpha_2 + \alpha_3 \ln D_1} + B\,N_1^{-\beta} + F\,P^{-\beta_1} + E$",
        inputs=("D1", "D2", "N1", "P"),
        parameters=(
            *parameters[:-1],
            scale("F", "loss that sparsity would save", "nats at P = 1"),
            exponent_parameter("beta1", "exponent of P", starts=(0.3, 1.0, 2.0)),
            parameters[-1],
        ),
        terms=terms,
        derived=EXPONENT_OF_D2,
    )
