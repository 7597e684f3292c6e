"""What laws become in each other's limits: the paper's requirements, and forms that are the same curves."""

import numpy as np
import pytest
from law_data import TRUTH, inputs_of, simulated

from upcycle.errors import UserError
from upcycle.laws.fit import fit
from upcycle.laws.forms import LAWS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("interaction", [0.0, 0.008, -0.01])
@pytest.mark.parametrize("offset", [1.0, 3e8])
def test_with_an_offset_the_law_meets_the_dense_law_at_no_upcycled_tokens(interaction: float, offset: float) -> None:
    """Requirement 2: A D1^-alpha1 + E, whatever the exponents of D2."""
    values = TRUTH["multiplicative_offset"] | {"alpha3": interaction, "D0": offset}
    D1 = np.geomspace(1e6, 1e13, 15)
    np.testing.assert_allclose(
        LAWS["multiplicative_offset"].predict(values, {"D1": D1, "D2": 0.0 * D1}),
        values["A"] * D1 ** -values["alpha1"] + values["E"],
        rtol=1e-13,
    )


def test_the_joint_law_with_an_offset_meets_equation_3() -> None:
    """Requirement 4: the dense law in D1 and N1 at D2 = 0."""
    values, D1, N1 = TRUTH["joint_offset"], np.geomspace(1e6, 1e13, 15), np.geomspace(1e6, 1e12, 15)
    dense = LAWS["chinchilla"].predict(
        {"A": values["A"], "alpha": values["alpha1"], "B": values["B"], "beta": values["beta"], "E": values["E"]},
        {"D": D1, "N": N1},
    )
    joint = LAWS["joint_offset"].predict(values, {"D1": D1, "D2": 0.0 * D1, "N1": N1})
    np.testing.assert_allclose(joint, dense, rtol=1e-13)


def test_far_above_its_offset_the_law_is_equation_1() -> None:
    values = TRUTH["multiplicative_offset"] | {"D0": 1e3}
    limit = {name: values[name] for name in ("alpha2", "alpha3", "E")}
    limit["alpha1"] = values["alpha1"] + values["alpha3"] * np.log(1e3)
    limit["A"] = values["A"] * 1e3 ** values["alpha2"]
    inputs = inputs_of("multiplicative_offset")
    np.testing.assert_allclose(
        LAWS["multiplicative_offset"].predict(values, inputs),
        LAWS["multiplicative_limit"].predict(limit, inputs),
        rtol=1e-6,
    )


def test_equation_8_is_equation_1_at_the_papers_budgets() -> None:
    inputs = inputs_of("multiplicative")
    one, other = (
        LAWS[name].predict(TRUTH["multiplicative"], inputs) for name in ("multiplicative", "multiplicative_limit")
    )
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_the_bilinear_form_is_equation_1_with_another_name_for_the_scale() -> None:
    data = simulated("multiplicative_limit", 2e-3)
    one, other = (fit(LAWS[name], data, draws=0) for name in ("multiplicative_limit", "bilinear"))
    assert other.objective == pytest.approx(one.objective, rel=1e-9)
    assert other.values["c"] == pytest.approx(np.log(one.values["A"]), rel=1e-6)
    assert other.values["alpha3"] == pytest.approx(one.values["alpha3"], rel=1e-5)


def test_the_law_of_everything_is_equation_12_at_one_mixture_and_equation_11_at_one_budget() -> None:
    values, inputs = TRUTH["joint_configuration"], inputs_of("joint_configuration")
    law = LAWS["joint_configuration"]
    at_one = inputs | {"P": np.full_like(inputs["P"], 25 / 7)}
    of_P = values["F"] * (25 / 7) ** -values["beta1"]
    joint = {name: value for name, value in values.items() if name not in ("F", "beta1")}
    np.testing.assert_allclose(
        law.predict(values, at_one), LAWS["joint"].predict(joint | {"E": values["E"] + of_P}, at_one), rtol=1e-12
    )
    budget = {"D1": np.full(9, 2.3e9), "D2": np.full(9, 2.3e9)} | {k: inputs[k][:9] for k in ("N1", "P")}
    tokens = LAWS["multiplicative_limit"].predict(joint | {"E": 0.0}, budget)
    eleven = {"A": values["F"], "beta1": values["beta1"], "F": values["B"], "beta2": values["beta"]}
    configuration = LAWS["configuration"].predict(eleven | {"E": values["E"]}, {"P": budget["P"], "N2": budget["N1"]})
    np.testing.assert_allclose(law.predict(values, budget), configuration + tokens, rtol=1e-12)


def test_a_scratch_model_without_the_other_kind_of_tokens_has_a_law_in_the_unified_form() -> None:
    values = TRUTH["unified"]
    D, N1 = np.geomspace(1e8, 1e11, 7), np.full(7, 1e8)
    dense = LAWS["unified"].predict(values, {"T1": D, "T2": 0 * D, "N1": N1})
    expected = values["A"] * (1 + D) ** -values["alpha1"] + values["B"] * N1 ** -values["beta"] + values["E"]
    np.testing.assert_allclose(dense, expected, rtol=1e-13)


def test_data_without_an_offset_put_it_at_its_wall_and_say_so() -> None:
    result = fit(LAWS["multiplicative_offset"], simulated("multiplicative_limit"), draws=0)
    assert not result.identifiable
    assert "D0 is at or beyond its bounds" in result.statement or "condition number" in result.statement
    assert result.rms_log is not None
    assert result.rms_log < 1e-4


def test_a_fixed_offset_stays_and_makes_the_law_plain() -> None:
    data = simulated("multiplicative_offset")
    result = fit(LAWS["multiplicative_offset"], data, fixed={"D0": 8e8}, draws=0)
    assert result.values == pytest.approx(TRUTH["multiplicative_offset"], rel=1e-6)
    one_token = fit(LAWS["multiplicative_offset"], simulated("multiplicative"), fixed={"D0": 1.0}, draws=0)
    assert one_token.values == pytest.approx(TRUTH["multiplicative"] | {"D0": 1.0}, rel=1e-5)
    with pytest.raises(UserError, match="D0 = 0"):
        fit(LAWS["multiplicative_offset"], data, fixed={"D0": 0.0})


def test_an_offset_does_not_depend_on_the_unit_of_tokens() -> None:
    """Tokens in millions: D0 in millions, the same exponents up to what alpha3 moves, the same objective."""
    data = simulated("multiplicative_offset", 2e-3)
    millions = data | {"D1": data["D1"] / 1e6, "D2": data["D2"] / 1e6}
    one, other = (fit(LAWS["multiplicative_offset"], rows, draws=0) for rows in (data, millions))
    assert other.objective == pytest.approx(one.objective, rel=1e-9)
    assert other.values["D0"] == pytest.approx(one.values["D0"] / 1e6, rel=1e-5)
    assert other.values["alpha3"] == pytest.approx(one.values["alpha3"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["multiplicative_offset", "joint_offset"])
def test_rows_without_upcycled_tokens_do_not_make_the_offset_form_worse_than_one_token(name: str) -> None:
    """At D0 = 1 token it is the printed form with 1 + D2, so no fit of it may be higher, wherever its walls are."""
    data = simulated(name, 2e-3)
    data = data | {"D2": np.where(np.arange(len(data["D2"])) % 5 == 0, 0.0, data["D2"])}
    one_token = TRUTH[name] | {"D0": 1.0}
    noise = np.exp(2e-3 * np.random.default_rng(1).standard_normal(len(data["D2"])))
    data["loss"] = LAWS[name].predict(one_token, data) * noise
    free = fit(LAWS[name], data, draws=0)
    assert free.objective <= fit(LAWS[name], data, fixed={"D0": 1.0}, draws=0).objective * (1 + 1e-9)


def test_a_floor_held_above_every_loss_is_refused() -> None:
    with pytest.raises(UserError, match="E = 100 is held above every loss"):
        fit(LAWS["multiplicative"], simulated("multiplicative"), fixed={"E": 100.0})
