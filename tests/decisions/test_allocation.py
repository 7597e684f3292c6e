"""Spending FLOPs: golden values of the audit, closed forms against brute force, bands."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from upcycle.decisions.allocation import (
    D_LOW,
    equation_14,
    minimise_in_box,
    optimal_scratch,
    optimal_two_stage,
    optimal_upcycled,
    three_way,
    upcycled_bands,
)
from upcycle.decisions.curves import Curve, ThreeLaws, published
from upcycle.errors import UserError
from upcycle.laws.forms import get_law

CENTRAL = published(draws=0)


def with_upcycled(law: str, values: dict[str, float], draws: dict[str, np.ndarray] | None = None) -> ThreeLaws:
    return ThreeLaws(None, None, Curve(get_law(law), values, draws, {}), 8, 2, "a test", False, True)


def offset_laws(offset: float = 1e9) -> ThreeLaws:
    """A law with an offset that meets Table 2's upcycled law at D2 much above it."""
    values = dict(CENTRAL.upcycled.values)
    values["A"] *= offset ** -values["alpha2"]
    values["alpha1"] -= values["alpha3"] * np.log(offset)
    return with_upcycled("joint_offset", {**values, "D0": offset})


def test_equation_14_at_two_trillion() -> None:
    """The audit's numbers for dense models of 2e12 tokens (Llama 2)."""
    optimum = equation_14(CENTRAL.upcycled.values, 2e12)
    assert optimum.alpha_eff == pytest.approx(0.0623973, abs=5e-8)
    assert (optimum.G, optimum.a) == (pytest.approx(1.3271005e-3, rel=1e-7), pytest.approx(0.6422117, abs=5e-8))
    assert optimum.b == pytest.approx(1 - optimum.a, abs=1e-15)
    assert optimum.exponent == pytest.approx(1.7949, abs=5e-5)
    assert [optimum.d2_of_n1(n1) for n1 in (7e9, 13e9, 70e9)] == pytest.approx([4.267e9, 1.296e10, 2.661e11], rel=4e-4)


def test_equation_14_spends_the_budget_and_agrees_with_itself() -> None:
    optimum = equation_14(CENTRAL.upcycled.values, 2e12)
    for flops in (1e18, 3e20, 1e25):
        assert 10.5 * optimum.d2(flops) * optimum.n1(flops) == pytest.approx(flops, rel=1e-12)
        assert optimum.d2_of_n1(optimum.n1(flops)) == pytest.approx(optimum.d2(flops), rel=1e-12)


@pytest.mark.parametrize("flops", [1e19, 3e20, 1e24])
@pytest.mark.parametrize("d1", [1e9, 2e12])
def test_equation_14_against_brute_force(d1: float, flops: float) -> None:
    values = CENTRAL.upcycled.values
    for top_k in (1, 2):
        laws = ThreeLaws(None, None, CENTRAL.upcycled, 8, top_k, "a test", False, True)
        ratio = laws.active_ratio

        def loss(log_d2: float, ratio: float = ratio) -> float:
            d2 = np.exp(log_d2)
            return float(CENTRAL.upcycled.loss(D1=d1, D2=d2, N1=flops / (6 * ratio * d2)))

        found = minimize_scalar(loss, bounds=(np.log(1e6), np.log(1e18)), method="bounded", options={"xatol": 1e-10})
        closed = equation_14(values, d1, ratio)
        numerical = optimal_upcycled(laws, d1, flops)
        assert np.log(closed.d2(flops)) == pytest.approx(found.x, abs=1e-5)
        assert loss(np.log(closed.d2(flops))) <= found.fun * (1 + 1e-15)
        assert numerical.d == pytest.approx(closed.d2(flops), rel=1e-5)
        assert numerical.n1 == pytest.approx(closed.n1(flops), rel=1e-5)
        assert numerical.loss == pytest.approx(loss(np.log(closed.d2(flops))), rel=1e-14)


def test_no_optimum_beyond_the_exhausting_d1() -> None:
    """alpha2 = alpha3 ln D1 at D1 = e^10: nothing to gain from there on, and it is said where it is asked for."""
    values = {**CENTRAL.upcycled.values, "alpha2": 0.1, "alpha3": 0.01}
    assert equation_14(values, np.exp(9.9)).exists
    nowhere = equation_14(values, np.exp(10.1))
    assert not nowhere.exists
    assert np.isnan(nowhere.exponent)
    with pytest.raises(UserError, match="no compute-optimal upcycling at this D1"):
        nowhere.d2_of_n1(1e9)
    assert np.isnan(upcycled_bands(with_upcycled("joint", values), np.exp(10.1), 1e9).d2)
    assert optimal_upcycled(with_upcycled("joint", values), np.exp(10.1), 1e20).at_bound == ("D2",)


def test_without_interaction() -> None:
    values = {name: value for name, value in CENTRAL.upcycled.values.items() if name != "alpha3"}
    assert equation_14(values, 1e10) == equation_14({**values, "alpha3": 0.0}, 1e10)
    assert equation_14(values, 1e10).alpha_eff == values["alpha2"]


@pytest.mark.parametrize(("lineage", "k", "n1", "d"), [("dense", 6.0, 10.4e9, 16.0e9), ("moe", 10.5, 2.3e9, 41.5e9)])
def test_from_scratch_at_1e21(lineage, k: float, n1: float, d: float) -> None:
    """The audit's compute-optimal models, and that they are optimal."""
    curve = CENTRAL.need(lineage)
    optimum = optimal_scratch(curve.values, 1e21, k)
    assert optimum.n1 == pytest.approx(n1, abs=0.05e9)
    assert optimum.d == pytest.approx(d, abs=0.05e9)
    assert k * optimum.n1 * optimum.d == pytest.approx(1e21, rel=1e-12)
    tokens = np.geomspace(1e8, 1e13, 100_001)
    losses = curve.loss(D=tokens, N1=1e21 / k / tokens)
    assert np.log(tokens[losses.argmin()] / optimum.d) == pytest.approx(0, abs=np.log(tokens[1] / tokens[0]))
    assert optimum.loss <= losses.min()
    assert optimum.loss == pytest.approx(losses.min(), rel=1e-10)


@pytest.mark.parametrize("flops", [1e18, 1e21, 1e25])
@pytest.mark.parametrize("law", ["joint", "joint_offset"])
def test_two_stages_against_a_fine_grid(law: str, flops: float) -> None:
    three = CENTRAL if law == "joint" else offset_laws(1e7)
    found = optimal_two_stage(three, flops)
    assert found.at_bound == ()
    assert 6 * found.n1 * (found.d1 + 1.75 * found.d2) == pytest.approx(flops, rel=1e-12)
    log_d1, log_d2 = (np.log(tokens) + np.linspace(-8, 8, 801) for tokens in (found.d1, found.d2))
    d1, d2 = np.meshgrid(np.exp(log_d1), np.exp(log_d2), indexing="ij")
    losses = three.upcycled.loss(D1=d1, D2=d2, N1=flops / 6 / (d1 + 1.75 * d2))
    at = np.unravel_index(losses.argmin(), losses.shape)
    assert log_d1[at[0]] == pytest.approx(np.log(found.d1), abs=1e-9)  # the grid's own centre
    assert log_d2[at[1]] == pytest.approx(np.log(found.d2), abs=1e-9)
    assert found.loss == pytest.approx(losses.min(), rel=1e-14)


def test_the_whole_box_is_searched() -> None:
    """No point of a coarse grid over all allowed budgets is better."""
    for three in (CENTRAL, offset_laws()):
        tokens = np.geomspace(1e6, 1e18, 601)
        d1, d2 = np.meshgrid(tokens, tokens)
        losses = three.upcycled.loss(D1=d1, D2=d2, N1=1e22 / 6 / (d1 + 1.75 * d2))
        assert optimal_two_stage(three, 1e22).loss <= losses.min()


def test_an_optimum_at_the_bound_says_so() -> None:
    """Where dense training gains nothing, none is done."""
    useless = {**CENTRAL.upcycled.values, "alpha1": 0.0, "alpha3": 0.0}
    found = optimal_two_stage(with_upcycled("joint", useless), 1e21)
    assert found.at_bound == ("D1",)
    assert found.d1 == pytest.approx(D_LOW, rel=1e-6)
    closed = equation_14(useless, D_LOW)
    assert found.d2 == pytest.approx(closed.d2(1e21), rel=1e-3)  # but for the cost of 1e6 dense tokens


def test_a_small_budget_may_want_no_upcycling() -> None:
    """With an offset of 1e9 tokens, a few upcycled tokens gain nothing: at 1e18 FLOPs the dense model is best."""
    assert optimal_two_stage(offset_laws(1e9), 1e18).at_bound == ("D2",)
    assert optimal_two_stage(offset_laws(1e9), 1e22).at_bound == ()


def test_minimise_follows_a_slanted_valley_and_takes_the_lower_of_two() -> None:
    def valley(x):
        return 1 + (x[0] + x[1] - 0.3) ** 2 + 1e-4 * (x[0] - x[1] - 5.7) ** 2

    found, value, at_bound = minimise_in_box(valley, np.array([-10.0, -10.0]), np.array([10.0, 10.0]))
    np.testing.assert_allclose(found, [3.0, -2.7], atol=1e-5)
    assert value == pytest.approx(1, abs=1e-12)
    assert not at_bound.any()

    def double(x):
        return 2 - np.exp(-((x[0] + 6) ** 2)) - 1.1 * np.exp(-((x[0] - 7) ** 2))

    assert minimise_in_box(double, np.array([-10.0]), np.array([10.0]))[0] == pytest.approx([7.0], abs=1e-6)


def test_three_ways() -> None:
    """From nothing, a MoE from scratch is best at every budget, as the paper says."""
    table = three_way(published(draws=200), np.geomspace(1e18, 1e25, 5))
    assert (table["best"] == "moe").all()
    assert (table["moe_loss"] < table["two_stage_loss"]).all()
    row = table.iloc[0]
    assert row["two_stage_loss"] == optimal_two_stage(CENTRAL, row["flops"]).loss
    assert row["dense_loss"] == optimal_scratch(CENTRAL.need("dense").values, row["flops"]).loss
    for name in ("dense", "moe", "two_stage"):
        assert (table[f"{name}_low"] < table[f"{name}_loss"]).all()
        assert (table[f"{name}_loss"] < table[f"{name}_high"]).all()
        assert table[f"{name}_outside"].is_monotonic_increasing
        assert table[f"{name}_outside"].iloc[-1] > 3
    assert "two_stage_low" not in three_way(CENTRAL, np.array([1e20]))


def test_two_stages_beat_the_best_dense_model_below_5e23() -> None:
    """Unlike Figure 16's caption, as far as Table 2's digits tell."""
    table = three_way(CENTRAL, np.array([1e18, 1e21, 4.9e23, 5.1e23, 1e25]))
    assert (table["two_stage_loss"] < table["dense_loss"]).tolist() == [True, True, True, False, False]


def test_bands_hold_the_rounding() -> None:
    three = published(draws=500, seed=2)
    bands = upcycled_bands(three, 2e12, 7e9)
    assert bands.d2 == pytest.approx(4.267e9, rel=4e-4)
    each = []
    for b in range(500):
        values = {name: float(column[b]) for name, column in (three.upcycled.draws or {}).items()}
        optimum = equation_14(values, 2e12)
        each.append((optimum.d2_of_n1(7e9), optimum.exponent))
    expected = np.quantile(each, [0.025, 0.975], axis=0).T
    assert bands.d2_band == pytest.approx(tuple(expected[0]), rel=1e-10)
    assert bands.exponent_band == pytest.approx(tuple(expected[1]), rel=1e-10)
    assert bands.share_without == 0
    assert upcycled_bands(CENTRAL, 2e12, 7e9).d2_band is None


def test_laws_without_a_closed_form_agree_with_it_where_they_meet() -> None:
    """An offset of one token leaves Equation 12, but for one token beside D2."""
    three = published(draws=20, seed=4)
    draws = {**(three.upcycled.draws or {}), "D0": np.ones(20)}
    offset = with_upcycled("joint_offset", {**CENTRAL.upcycled.values, "D0": 1.0}, draws)
    closed, solved = upcycled_bands(three, 2e12, 7e9), upcycled_bands(offset, 2e12, 7e9)
    assert solved.share_without == 0
    assert (solved.d2, solved.exponent) == pytest.approx((closed.d2, closed.exponent), rel=1e-5)
    assert solved.d2_band == pytest.approx(closed.d2_band, rel=1e-5)
    assert solved.exponent_band == pytest.approx(closed.exponent_band, rel=1e-5)


def test_the_best_d2_of_a_size_is_the_best_size_of_its_budget() -> None:
    """For a law without a closed form: the budget that D2_opt costs at this size has this size as its optimum."""
    three = offset_laws()
    d2 = upcycled_bands(three, 1e10, 7e10).d2
    assert optimal_upcycled(three, 1e10, 10.5 * 7e10 * d2).n1 == pytest.approx(7e10, rel=1e-5)


def test_draws_without_an_optimum_are_counted() -> None:
    draws = {name: np.full(4, value) for name, value in CENTRAL.upcycled.values.items()}
    draws["alpha3"] = np.array([7.98e-4, 7.98e-4, 7.98e-4, 1e-2])
    bands = upcycled_bands(with_upcycled("joint", dict(CENTRAL.upcycled.values), draws), 2e12, 7e9)
    assert bands.share_without == 0.25
    assert bands.d2_band == pytest.approx((bands.d2, bands.d2))


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="Equation 3's parameters; missing: alpha"):
        optimal_scratch({"A": 1.0, "B": 1.0, "beta": 0.1, "E": 1.0}, 1e20)
    with pytest.raises(UserError, match="no compute-optimal model"):
        optimal_scratch({**CENTRAL.need("dense").values, "alpha": -0.1}, 1e20)
    with pytest.raises(UserError, match="flops = 0"):
        optimal_two_stage(CENTRAL, 0)
    values = {name: value for name, value in CENTRAL.upcycled.values.items() if name not in ("B", "beta")}
    with pytest.raises(UserError, match="knows no model size"):
        optimal_upcycled(with_upcycled("multiplicative", values), 1e10, 1e20)
