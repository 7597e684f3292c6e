"""Crossings of upcycling and training from scratch: golden values of the audit, all roots, bands, and words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import brentq

from upcycle.decisions.allocation import upcycled_bands
from upcycle.decisions.curves import Curve, ThreeLaws, published
from upcycle.decisions.roots import all_roots
from upcycle.decisions.thresholds import (
    HIGH,
    LOW,
    Threshold,
    band_in_words,
    d_star,
    equation_2,
    near_or_words,
    refit_equation_2,
    threshold_d2,
    threshold_flops,
)
from upcycle.errors import UserError
from upcycle.laws.forms import get_law

CENTRAL = published(draws=0)
GRID = np.linspace(np.log(LOW), np.log(HIGH), 20_001)


def brute_force(three: ThreeLaws, scratch, upcycled) -> list[float]:
    """Crossings on a grid 36 times finer than the scan's, each solved by SciPy."""
    moe = three.need("moe")

    def gap(log_tokens):
        tokens = np.exp(log_tokens)
        return moe.loss(**scratch(tokens)) - three.upcycled.loss(**upcycled(tokens))

    values = gap(GRID)
    at = np.flatnonzero((values[:-1] >= 0) != (values[1:] >= 0))
    return [float(np.exp(brentq(gap, GRID[k], GRID[k + 1], xtol=1e-13, rtol=1e-14))) for k in at]


@pytest.mark.parametrize(
    ("n1", "first", "second"),
    [(5.2189e8, 5.35e9, None), (1e9, 3.0225e9, 536e9), (7e9, 0.880e9, 4.64e12), (7e10, 0.308e9, None)],
)
def test_d_star_of_table_2(n1: float, first: float, second: float | None) -> None:
    threshold = d_star(CENTRAL, n1)
    assert threshold.below == "upcycle"
    assert len(threshold.roots) == 2
    assert threshold.roots[0] == pytest.approx(first, rel=1e-3)
    if second is not None:
        assert threshold.roots[1] == pytest.approx(second, rel=1e-3)
    for root in threshold.roots:
        scratch = CENTRAL.need("moe").loss(D=root, N1=n1)
        assert CENTRAL.upcycled.loss(D1=root, D2=root, N1=n1) == pytest.approx(scratch, rel=1e-14)


def test_no_root_below_its_smallest_size() -> None:
    """No root below N1 = 2.149e8: the bound itself is found by halving to its four digits."""
    low, high = 1e8, 1e9
    while high / low > 1 + 1e-6:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if d_star(CENTRAL, middle).roots else (middle, high)
    assert high == pytest.approx(2.149e8, rel=3e-4)
    nowhere = d_star(CENTRAL, low)
    assert nowhere.roots == ()
    assert nowhere.ahead(1e10) == "upcycle"
    assert "ahead everywhere from 14.4M to 738B tokens, a factor of 10 about the data: no root" in nowhere.statement


def test_the_approximation_in_print() -> None:
    """Equation 2's exponents come out as printed, its prefactor does not."""
    assert equation_2(1e9) == pytest.approx(4e9)
    assert equation_2(1e8) == pytest.approx(25e9, rel=0.02)
    assert d_star(CENTRAL, 1e8).roots == ()
    refit = refit_equation_2(CENTRAL)
    assert refit.exponent == pytest.approx(-0.694, abs=1e-3)
    assert refit.curvature == pytest.approx(0.0385, abs=1e-4)
    assert 2.9e9 < refit.prefactor < 3.1e9
    ratio = equation_2(refit.n1) / refit.d_star
    assert (ratio.min(), ratio.max()) == pytest.approx((1.32, 1.39), abs=0.006)
    assert np.isnan(refit_equation_2(CENTRAL, 1e7, 1e8, 5).prefactor)


def test_rounding_moves_d_star_this_much() -> None:
    """The audit's 3,000 draws gave a median of 2.57e9, 95 % in .74e9..16.2e9, 13 % none, 31 % of the others >= 4e9.

    6,000 draws here. Tolerances are four standard errors of the difference of the two samples, from the density of
    ln D* at its quantiles (s.d. about 0.8, median 0.018; at 2.5 % and 97.5 % 0.04 and 0.05), and from sqrt(p q / n).
    """
    threshold = d_star(published(draws=6000, seed=5), 1e9)
    firsts = np.array([roots[0] for roots in threshold.draws if roots])
    assert np.log(np.median(firsts) / 2.57e9) == pytest.approx(0, abs=0.09)
    assert threshold.band is not None
    assert np.log(threshold.band[0] / 0.74e9) == pytest.approx(0, abs=0.16)
    assert np.log(threshold.band[1] / 16.2e9) == pytest.approx(0, abs=0.2)
    assert threshold.shares["none"] == pytest.approx(0.13, abs=0.03 + 0.005)
    assert (firsts >= 4e9).mean() == pytest.approx(0.31, abs=0.042 + 0.005)
    assert "have none" in threshold.statement
    assert "among the draws that have one" in threshold.statement
    assert len(threshold.draws) == 6000


def test_loss_errors_move_d_star_this_much() -> None:
    central = d_star(CENTRAL, 1e9)
    assert central.slopes[0] == pytest.approx(-0.0175, abs=5e-5)
    assert d_star(CENTRAL, 1e9, shift=-0.015).roots[0] == pytest.approx(1.48e9, rel=5e-3)
    assert d_star(CENTRAL, 1e9, shift=0.015).roots[0] == pytest.approx(10.7e9, rel=5e-3)
    D = np.geomspace(1e9, 1e12, 3001)
    gap = CENTRAL.need("moe").loss(D=D, N1=1e9) - CENTRAL.upcycled.loss(D1=D, D2=D, N1=1e9)
    assert gap.min() == pytest.approx(-0.0185, abs=5e-5)
    assert D[gap.argmin()] == pytest.approx(31e9, rel=0.2)


@pytest.mark.parametrize(
    ("n1", "d1", "expected", "half_unit"),
    [
        (1e9, 1e9, 1.5e9, 0.05e9),
        (1e9, 1e10, 7.1e9, 0.05e9),
        (1e9, 73.82e9, 37.5e9, 0.05e9),  # the audit says 37, which is cut, not rounded
        (1e9, 1e11, 51e9, 0.5e9),
        (1e9, 1e12, None, None),
        (7e9, 1e9, 0.95e9, 0.005e9),
        (7e9, 1e10, 3.9e9, 0.05e9),
        (7e9, 73.82e9, 15e9, 0.5e9),
        (7e9, 1e11, 19e9, 0.5e9),
        (7e9, 1e12, 160e9, 5e9),
        (7e9, 2e12, 380e9, 5e9),
    ],
)
def test_thresholds_against_d2(n1: float, d1: float, expected: float | None, half_unit: float | None) -> None:
    """The table of the audit, to the digits that it prints."""
    threshold = threshold_d2(CENTRAL, n1, d1)
    if expected is None:
        assert threshold.roots == ()
        assert threshold.below == "upcycle"
        return
    assert threshold.roots[0] == pytest.approx(expected, abs=half_unit)
    assert threshold.ahead(threshold.roots[0] * 0.9) == "upcycle"
    assert threshold.ahead(threshold.roots[0] * 1.1) == "scratch"


def test_cost_decides() -> None:
    """With the dense cost sunk, FLOPs are tokens; with it paid, training from scratch is ahead from the start."""
    sunk, paid = threshold_d2(CENTRAL, 1e9, 1e10), threshold_flops(CENTRAL, 1e9, 1e10)
    assert (sunk.below, paid.below) == ("upcycle", "scratch")
    extra = 1e10 / 1.75
    expected = brute_force(CENTRAL, lambda D: {"D": D + extra, "N1": 1e9}, lambda D: {"D1": 1e10, "D2": D, "N1": 1e9})
    np.testing.assert_allclose(paid.roots, expected, rtol=1e-10)
    assert (sunk.criterion, paid.criterion) == ("D2", "FLOPs, dense cost paid")


def random_laws(seed: int) -> ThreeLaws:
    """Three laws whose parameters scatter widely about Table 2, one in two with an offset."""
    generator = np.random.default_rng(seed)
    laws = published(draws=0)

    def spread(curve: Curve, law: str, **more: float) -> Curve:
        values = {k: v * generator.uniform(0.8, 1.25) for k, v in {**curve.values, **more}.items()}
        return Curve(get_law(law), values, None, curve.box)

    upcycled = spread(laws.upcycled, "joint") if seed % 2 else spread(laws.upcycled, "joint_offset", D0=1e8)
    return ThreeLaws(None, spread(laws.need("moe"), "chinchilla"), upcycled, 8, 2, "a test", False, True)


def every_root(threshold: Threshold) -> tuple[float, ...]:
    """Those that count and those too far outside the data."""
    return (*threshold.before, *threshold.roots, *threshold.after)


def test_all_roots_are_those_of_a_finer_scan() -> None:
    counts = set()
    for seed in range(40):
        three = random_laws(seed)
        found = d_star(three, 1e9)
        expected = brute_force(three, lambda D: {"D": D, "N1": 1e9}, lambda D: {"D1": D, "D2": D, "N1": 1e9})
        np.testing.assert_allclose(every_root(found), expected, rtol=1e-10)
        against_d2 = threshold_d2(three, 1e9, 1e11)
        expected = brute_force(three, lambda D: {"D": D, "N1": 1e9}, lambda D: {"D1": 1e11, "D2": D, "N1": 1e9})
        np.testing.assert_allclose(every_root(against_d2), expected, rtol=1e-10)
        counts |= {len(every_root(found)), len(every_root(against_d2))}
    assert counts >= {0, 1, 2}


@pytest.mark.parametrize("gap", [1e-5, 1e-3, 0.02, 0.049, 0.3])
def test_close_roots_are_both_found(gap: float) -> None:
    """Parabolas whose two roots lie closer than the scan's step, anywhere within it, and one that just misses 0."""
    middle_B = 20 + np.linspace(0, 0.05, 23)

    def at_rows(rows, x):
        return (x - middle_B[rows]) ** 2 - gap**2 / 4

    def on_grid(x):
        return at_rows(np.arange(23)[:, None], x)

    found = np.array(all_roots(on_grid, at_rows, 10, 40))
    # A parabola's root at slope gap is known to the rounding of its value over that slope.
    np.testing.assert_allclose(found, middle_B[:, None] + [-gap / 2, gap / 2], rtol=0, atol=1e-12 + 1e-16 / gap)
    assert (
        all_roots(lambda x: on_grid(x) + gap**2 / 3.9, lambda r, x: at_rows(r, x) + gap**2 / 3.9, 10, 40) == [()] * 23
    )


def test_roots_of_draws_are_those_of_the_laws_of_each_draw() -> None:
    three = published(draws=6, seed=3)
    threshold = d_star(three, 7e9)
    for b in range(6):
        curves = [
            Curve(curve.law, {name: float(column[b]) for name, column in (curve.draws or {}).items()}, None, curve.box)
            for curve in (three.need("moe"), three.upcycled)
        ]
        alone = d_star(ThreeLaws(None, *curves, 8, 2, "one draw", True, True), 7e9)
        np.testing.assert_allclose(threshold.draws[b], alone.roots, rtol=1e-12)


def test_all_draws_are_solved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Laws are evaluated hardly more often for 2000 draws than for 50: no draw is solved by itself."""
    calls = 0

    def counted(method):
        def counting(*arguments, **named):
            nonlocal calls
            calls += 1
            return method(*arguments, **named)

        return counting

    for name in ("loss", "loss_draws", "loss_rows", "loss_at"):
        monkeypatch.setattr(Curve, name, counted(getattr(Curve, name)))
    made = []
    for draws in (50, 2000):
        calls = 0
        d_star(published(draws=draws), 1e9)
        made.append(calls)
    assert 0 < made[1] <= 2 * made[0]


def test_statement_and_distance() -> None:
    threshold = d_star(published(draws=50), 7e9)
    assert "upcycling is ahead below D* = 880M tokens, training from scratch above 880M" in threshold.statement
    assert "1 far above the data" in threshold.statement
    assert "4.64T" not in threshold.statement
    assert "outside the data in N1 by a factor of 6.45" in threshold.statement
    assert threshold.outside == pytest.approx({"D": 0, "N1": np.log(7e9 / 1_085_859_424), "D1": 0, "D2": 0})
    assert [threshold.ahead(tokens) for tokens in (1e8, 1e10, 1e13)] == ["upcycle", "scratch", "upcycle"]
    assert "no band is known" in d_star(CENTRAL, 7e9).statement
    assert d_star(CENTRAL, 7e9).band is None


def test_one_draw_has_no_band() -> None:
    assert d_star(published(draws=1), 7e9).band is None
    assert d_star(published(draws=2), 7e9).band is not None
    assert upcycled_bands(published(draws=1), 2e12, 7e9).d2_band is None


def test_of_several_roots_the_statement_names_the_one_that_its_band_is_of() -> None:
    threshold = d_star(dataclasses.replace(published(draws=50), rounded=False), 1e9)
    assert [f"{root:.3g}" for root in threshold.roots] == ["3.02e+09", "5.36e+11"]
    assert "95 % of the reported D* (3.02B, the root nearest the data) among" in threshold.statement


def test_tokens_far_outside_the_data_are_words() -> None:
    data = (1e8, 1e10)
    assert [near_or_words(tokens, data) for tokens in (9e6, 1.1e7, 9e10, 1.1e11)] == [
        "far below the data",
        "11M",
        "90B",
        "far above the data",
    ]
    assert near_or_words(1e17, None) == "1e+05T"
    assert band_in_words((2e7, 1e12), data) == "20M to far above the data"
    assert band_in_words((1e12, 1e13), data) == "far above the data"


def test_laws_without_sizes_say_so() -> None:
    box = {"N1": (1e8, 1e8)}
    moe = Curve(get_law("power_in_tokens"), {"A": 30.0, "alpha": 0.15, "E": 1.6}, None, box)
    values = {"A": 16.0, "alpha1": 0.043, "alpha2": 0.085, "alpha3": 8e-4, "E": 1.2}
    up = Curve(get_law("multiplicative"), values, None, box)
    threshold: Threshold = d_star(ThreeLaws(None, moe, up, 8, 2, "a test", False, True), 1e9)
    assert "know no model size" in threshold.statement
    assert threshold.outside["N1"] == pytest.approx(np.log(10))


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="n1 = -1"):
        d_star(CENTRAL, -1)
    with pytest.raises(UserError, match="d1 = nan"):
        threshold_d2(CENTRAL, 1e9, float("nan"))
    alone = ThreeLaws(None, None, CENTRAL.upcycled, 8, 2, "one fit", False, True)
    with pytest.raises(UserError, match="one fit has no law of MoEs"):
        threshold_flops(alone, 1e9, 1e9)


def with_extra_roots(low_root: float, high_root: float, frame: tuple[float, float]) -> ThreeLaws:
    """Laws that give equal losses at two numbers of tokens, fitted to data of a range of tokens."""
    a, b, x, y = 0.1, 0.4, np.log(low_root), np.log(high_root)
    # The gap F D^-a + G D^-b - 1 is 0 at both: two linear equations in F and G.
    F, G = np.linalg.solve([[np.exp(-a * x), np.exp(-b * x)], [np.exp(-a * y), np.exp(-b * y)]], [1.0, 1.0])
    moe = {"A": float(F), "alpha": a, "B": 0.0, "beta": 0.1, "E": 3.0}
    up = {"A": float(-G), "alpha1": b, "alpha2": 0.0, "alpha3": 0.0, "B": 0.0, "beta": 0.1, "E": 4.0}
    curve = Curve(get_law("chinchilla"), moe, None, {"D": frame, "N1": (1e9, 1e9)})
    upcycled = Curve(get_law("joint"), up, None, {"D1": frame, "D2": frame, "N1": (1e9, 1e9)})
    return ThreeLaws(None, curve, upcycled, 8, 2, "a test", False, True)


def test_roots_far_outside_the_data_are_named_and_do_not_count() -> None:
    """Data from 1e8 to 1e10 tokens: a root at 1e6 does not count, one at 2e7 does, and the nearest is reported."""
    three = with_extra_roots(1e6, 3e9, (1e8, 1e10))
    found = d_star(three, 1e9)
    assert found.roots == pytest.approx((3e9,))
    assert found.before == pytest.approx((1e6,))
    assert found.root == pytest.approx(3e9)
    assert "1 far below the data" in found.statement
    assert "1M" not in found.statement
    sides = [found.ahead(tokens) for tokens in (1e5, 1e8, 1e10)]
    assert sides == [sides[0], {"upcycle": "scratch", "scratch": "upcycle"}[sides[0]], sides[0]]
    assert found.below == sides[1]
    both = d_star(with_extra_roots(2e7, 3e9, (1e8, 1e10)), 1e9)
    assert both.roots == pytest.approx((2e7, 3e9))
    assert both.root == pytest.approx(3e9)
    neither = d_star(with_extra_roots(1e6, 1e12, (1e8, 1e10)), 1e9)
    assert (neither.roots, neither.root) == ((), None)
    assert neither.after == pytest.approx((1e12,))
    assert neither.ahead(1e9) == neither.below
