"""Laws: their formulas, derivatives and refusals."""

import math

import numpy as np
import pytest
from law_data import TRUTH, inputs_of

from upcycle.errors import UserError
from upcycle.laws.forms import LAWS, get_law


def of_tokens(p, x, after):
    """The multiplicative term, of tokens `after` upcycling."""
    return p["A"] * x["D1"] ** -p["alpha1"] * after ** (-p["alpha2"] + p["alpha3"] * np.log(x["D1"]))


FORMULAS = {
    "chinchilla": lambda p, x: p["A"] * x["D"] ** -p["alpha"] + p["B"] * x["N"] ** -p["beta"] + p["E"],
    "power": lambda p, x: p["A"] * x["D2"] ** -p["alpha"] + p["E"],
    "multiplicative": lambda p, x: (
        p["A"] * x["D1"] ** -p["alpha1"] * (1 + x["D2"]) ** (-p["alpha2"] + p["alpha3"] * np.log(x["D1"])) + p["E"]
    ),
    "multiplicative_no_interaction": lambda p, x: (
        p["A"] * x["D1"] ** -p["alpha1"] * (1 + x["D2"]) ** -p["alpha2"] + p["E"]
    ),
    "additive": lambda p, x: (
        p["A"] * x["D1"] ** -p["alpha1"]
        + p["F"] * (1 + x["D2"]) ** (-p["alpha2"] + p["alpha3"] * np.log(x["D1"]))
        + p["E"]
    ),
    "additive_no_interaction": lambda p, x: (
        p["A"] * x["D1"] ** -p["alpha1"] + p["F"] * (1 + x["D2"]) ** -p["alpha2"] + p["E"]
    ),
    "power_in_tokens": lambda p, x: p["A"] * x["D"] ** -p["alpha"] + p["E"],
    "power_in_size": lambda p, x: p["B"] * x["N1"] ** -p["beta"] + p["E"],
    "multiplicative_limit": lambda p, x: of_tokens(p, x, x["D2"]) + p["E"],
    "bilinear": lambda p, x: (
        np.exp(
            p["c"]
            - p["alpha1"] * np.log(x["D1"])
            - p["alpha2"] * np.log(x["D2"])
            + p["alpha3"] * np.log(x["D1"]) * np.log(x["D2"])
        )
        + p["E"]
    ),
    "multiplicative_offset": lambda p, x: of_tokens(p, x, 1 + x["D2"] / p["D0"]) + p["E"],
    "multiplicative_offset_no_interaction": lambda p, x: (
        p["A"] * x["D1"] ** -p["alpha1"] * (1 + x["D2"] / p["D0"]) ** -p["alpha2"] + p["E"]
    ),
    "configuration": lambda p, x: p["A"] * x["P"] ** -p["beta1"] + p["F"] * x["N2"] ** -p["beta2"] + p["E"],
    "configuration_multiplicative": lambda p, x: (
        p["A"] * x["P"] ** -p["beta1"] * (1 + x["N2"]) ** (-p["beta2"] + p["beta3"] * np.log(x["P"])) + p["E"]
    ),
    "configuration_multiplicative_no_interaction": lambda p, x: (
        p["A"] * x["P"] ** -p["beta1"] * (1 + x["N2"]) ** -p["beta2"] + p["E"]
    ),
    "configuration_additive": lambda p, x: (
        p["A"] * x["P"] ** -p["beta1"] + p["F"] * (1 + x["N2"]) ** (-p["beta2"] + p["beta3"] * np.log(x["P"])) + p["E"]
    ),
    "configuration_additive_no_interaction": lambda p, x: (
        p["A"] * x["P"] ** -p["beta1"] + p["F"] * (1 + x["N2"]) ** -p["beta2"] + p["E"]
    ),
    "joint": lambda p, x: of_tokens(p, x, x["D2"]) + p["B"] * x["N1"] ** -p["beta"] + p["E"],
    "joint_no_interaction": lambda p, x: (
        p["A"] * x["D1"] ** -p["alpha1"] * x["D2"] ** -p["alpha2"] + p["B"] * x["N1"] ** -p["beta"] + p["E"]
    ),
    "joint_offset": lambda p, x: of_tokens(p, x, 1 + x["D2"] / p["D0"]) + p["B"] * x["N1"] ** -p["beta"] + p["E"],
    "joint_rejected": lambda p, x: (
        p["A"] * x["D1"] ** -p["alpha1"]
        + p["B"] * x["D2"] ** -p["alpha2"] * x["N1"] ** (-p["beta"] + p["alpha3"] * np.log(x["D2"]))
        + p["E"]
    ),
    "unified": lambda p, x: (
        p["A"] * (1 + x["T1"]) ** -p["alpha1"] * (1 + x["T2"]) ** (-p["alpha2"] + p["alpha3"] * np.log(1 + x["T1"]))
        + p["B"] * x["N1"] ** -p["beta"]
        + p["E"]
    ),
    "joint_configuration": lambda p, x: (
        of_tokens(p, x, x["D2"]) + p["B"] * x["N1"] ** -p["beta"] + p["F"] * x["P"] ** -p["beta1"] + p["E"]
    ),
    "exponent_vs_d1": lambda p, x: p["gamma"] * np.log(x["D1"]) + p["E_prime"],
    "scale_vs_d1": lambda p, x: p["C"] * x["D1"] ** -p["eta"],
}
"""The printed formulas, written out a second time."""


@pytest.mark.parametrize("name", LAWS)
def test_prediction_is_the_printed_formula(name: str) -> None:
    inputs = inputs_of(name)
    np.testing.assert_allclose(LAWS[name].predict(TRUTH[name], inputs), FORMULAS[name](TRUTH[name], inputs), rtol=1e-13)


@pytest.mark.parametrize("name", LAWS)
def test_gradient_equals_finite_differences(name: str) -> None:
    law, inputs = LAWS[name], inputs_of(name)
    theta = law.internal(TRUTH[name])
    model = law.model(inputs)
    for k in range(len(theta)):
        step = np.zeros_like(theta)
        step[k] = 1e-6 * max(1.0, abs(theta[k]))
        difference = (model.value((theta + step)[None]) - model.value((theta - step)[None]))[0] / (2 * step[k])
        np.testing.assert_allclose(law.gradient(TRUTH[name], inputs)[:, k], difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", LAWS)
def test_curvature_equals_finite_differences_of_the_gradient(name: str) -> None:
    """Both forms of the second derivative: summed over points with weights, and along a direction."""
    law, inputs = LAWS[name], inputs_of(name)
    theta, model = law.internal(TRUTH[name]), law.model(inputs)
    at = model.derivatives(theta[None])
    weight = np.random.default_rng(0).standard_normal((1, at.value_SN.shape[1]))
    # Per unit change of the log loss, so that one step suits all parameters.
    size = 1e-5 / np.maximum(np.abs(at.slope_SNP[0]).max(axis=0), 1e-3)
    curvature = model.weighted_curvature(at, weight)[0]
    for k in range(len(theta)):
        step = np.zeros_like(theta)
        step[k] = size[k]
        ahead, behind = (model.derivatives((theta + sign * step)[None]).slope_SNP[0] for sign in (1, -1))
        difference = (ahead - behind) / (2 * size[k])
        np.testing.assert_allclose(curvature[k] * size, weight[0] @ difference * size, rtol=1e-4, atol=1e-12)
    direction = size * np.arange(1, len(theta) + 1)
    ahead, behind = (model.derivatives((theta + sign * direction)[None]).slope_SNP[0] for sign in (1, -1))
    np.testing.assert_allclose(
        model.bend(at, direction[None, None])[0, 0], (ahead - behind) / 2 @ direction, rtol=1e-4, atol=1e-16
    )


@pytest.mark.parametrize("name", LAWS)
def test_a_law_names_what_its_parameters_are(name: str) -> None:
    law = LAWS[name]
    assert law.name == name
    assert law.label.startswith(("Equation", "Section ", "Requirement "))
    for parameter in law.parameters:
        assert parameter.unit
        assert parameter.meaning
        if parameter.kind != "offset":
            assert parameter.bounds[0] < TRUTH[name][parameter.name] < parameter.bounds[1]


def test_a_floor_of_zero_and_a_scale_of_zero_drop_their_terms() -> None:
    inputs = inputs_of("additive")
    without = LAWS["additive"].predict(TRUTH["additive"] | {"E": 0.0, "F": 0.0}, inputs)
    np.testing.assert_allclose(without, 200.0 * inputs["D1"] ** -0.3, rtol=1e-13)


def test_derived_quantities_of_the_interaction() -> None:
    """The exponent of D2 at either end of the data, and the D1 where it vanishes."""
    values = {"A": 1.0, "alpha1": 0.1, "alpha2": 0.2, "alpha3": 0.01, "E": 1.0}
    derived = {d.name: d.value(values, {"D1": (1e6, 1e8), "D2": (1, 2)}) for d in LAWS["multiplicative"].derived}
    assert derived["exponent_at_smallest_D1"] == pytest.approx(0.2 - 0.01 * math.log(1e6))
    assert derived["exponent_at_largest_D1"] == pytest.approx(0.2 - 0.01 * math.log(1e8))
    assert derived["exhausting_D1"] == pytest.approx(math.exp(20))


def test_an_unknown_law_or_parameter_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean `multiplicative`"):
        get_law("multiplicativ")
    with pytest.raises(UserError, match="did you mean `alpha3`"):
        LAWS["multiplicative"].parameter("alpha_3")


def test_an_input_without_logarithm_is_named() -> None:
    with pytest.raises(UserError, match=r"cannot take D2 = 0: select rows with `where`"):
        LAWS["power"].predict(TRUTH["power"], {"D2": np.array([1e6, 0.0])})


def test_a_missing_column_is_named() -> None:
    with pytest.raises(UserError, match="needs column `D2`"):
        LAWS["power"].predict(TRUTH["power"], {"D": np.array([1e6])})
