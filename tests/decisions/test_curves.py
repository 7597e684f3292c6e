"""The three laws as curves: Table 2, fits of any kind, and their draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from upcycle.decisions.curves import Curve, ThreeLaws, from_fits, published, read_three_laws
from upcycle.decisions.published import D_RANGE, TABLE_2, half_unit
from upcycle.errors import UserError
from upcycle.laws.fit import fit, fit_floor
from upcycle.laws.forms import LAWS, get_law
from upcycle.laws.result import FitResult, write_fit

TOKENS = 0.577e9 * 2.0 ** np.arange(4)
SIZES = np.array([1.5e7, 9.8e7, 5.2e8])


def scratch_data(seed: int = 0) -> dict[str, Any]:
    """Dense and MoE losses of Table 2 on a small grid, with noise."""
    laws = published(draws=0)
    D, N1 = (grid.ravel() for grid in np.meshgrid(TOKENS, SIZES))
    losses = np.concatenate([laws.need("dense").loss(D=D, N1=N1), laws.need("moe").loss(D=D, N1=N1)])
    losses += 0.001 * np.random.default_rng(seed).standard_normal(len(losses))
    lineage = np.repeat(["dense", "moe"], len(D))
    return {"D": np.tile(D, 2), "N": np.tile(N1, 2), "loss": losses, "lineage": lineage}


def upcycled_data(seed: int = 1) -> dict[str, Any]:
    """Upcycled losses of Table 2 on a small grid, with noise."""
    D1, D2, N1 = (grid.ravel() for grid in np.meshgrid(TOKENS, TOKENS * 1.1, SIZES))
    losses = published(draws=0).upcycled.loss(D1=D1, D2=D2, N1=N1)
    return {
        "D1": D1,
        "D2": D2,
        "N1": N1,
        "loss": losses + 0.001 * np.random.default_rng(seed).standard_normal(len(losses)),
    }


@pytest.fixture(scope="module")
def single_fits() -> dict[str, FitResult]:
    """A fit of each of the three laws, E fixed, dense and MoE apart; the MoE's with fewer draws."""
    data, fits = scratch_data(), {}
    for lineage, draws in (("dense", 12), ("moe", 8)):
        rows = data["lineage"] == lineage
        part = {name: column[rows] for name, column in data.items() if name != "lineage"}
        fits[f"scratch_{lineage}"] = replace(
            fit(get_law("chinchilla"), part, fixed={"E": 0.165}, draws=draws), lineage=lineage
        )
    up = fit(get_law("joint"), upcycled_data(), fixed={"E": 0.165}, draws=12)
    fits["joint"] = replace(up, lineage="up", n_expert=8, top_k=2)
    return fits


def by_hand(name: str, x: dict[str, Any]) -> Any:
    """The laws of Table 2, written out a second time."""
    if name == "dense":
        return 8.83 * x["D"] ** -0.088 + 12.3 * x["N1"] ** -0.116 + 0.165
    if name == "moe":
        return 32.0 * x["D"] ** -0.161 + 7.05 * x["N1"] ** -0.080 + 0.165
    exponent = -0.085 + 7.98e-4 * np.log(x["D1"])
    return 16.3 * x["D1"] ** -0.043 * x["D2"] ** exponent + 8.53 * x["N1"] ** -0.112 + 0.165


def test_published_laws_are_table_2() -> None:
    laws = published(draws=3)
    D, N1 = np.array([[1e9], [2e12]]), np.array([1e8, 1e9, 7e10])
    for name in ("dense", "moe"):
        np.testing.assert_allclose(laws.need(name).loss(D=D, N1=N1), by_hand(name, {"D": D, "N1": N1}), rtol=1e-13)
    loss = laws.upcycled.loss(D1=D, D2=1e10, N1=N1)
    assert loss.shape == (2, 3)
    np.testing.assert_allclose(loss, by_hand("upcycled", {"D1": D, "D2": 1e10, "N1": N1}), rtol=1e-13)
    assert laws.upcycled.loss(D1=1e9, D2=1e9, N1=1e9).shape == ()
    assert (laws.active_ratio, laws.rounded, laws.paired) == (1.75, True, True)


def test_floors_of_the_audit() -> None:
    """At N1 = 1e9, as D grows without bound: 1.28 dense, 1.51 MoE, 1.00 upcycled."""
    laws = published(draws=0)
    floors = [laws.need(name).loss(D=1e300, N1=1e9) for name in ("dense", "moe")]
    assert floors == pytest.approx([1.276, 1.508], abs=5e-4)
    assert pytest.approx(1.002, abs=5e-4) == 8.53 * 1e9**-0.112 + 0.165


def test_draws_fill_the_rounding_boxes_and_share_the_floor() -> None:
    laws = published(draws=4000)
    assert half_unit("7.98e-4") == pytest.approx(5e-7)
    assert half_unit("32.0") == pytest.approx(0.05)
    for lineage, printed in TABLE_2.items():
        draws = laws.need(lineage).draws  # type: ignore[arg-type]
        assert draws is not None
        np.testing.assert_array_equal(draws["E"], laws.upcycled.draws["E"])  # type: ignore[index]
        for name, digits in printed.items():
            offset = (draws[name] - float(digits)) / half_unit(digits)
            assert np.abs(offset).max() <= 1
            assert np.abs(offset).max() > 0.99
            assert abs(offset.mean()) < 4 / np.sqrt(3 * 4000)  # four standard errors


@pytest.mark.parametrize("name", ["chinchilla", "joint", "joint_offset", "additive", "multiplicative_offset"])
def test_rows_of_draws_are_the_law_at_each_draw(name: str) -> None:
    law, generator = get_law(name), np.random.default_rng(2)
    central = {"A": 9.0, "alpha": 0.1, "alpha1": 0.05, "alpha2": 0.09, "alpha3": 1e-3, "B": 8.0, "beta": 0.1,
               "E": 0.2, "D0": 3e8, "F": 5.0}  # fmt: skip
    values = {key: central[key] for key in law.names}
    draws = {key: value * generator.uniform(0.9, 1.1, 5) for key, value in values.items()}
    curve = Curve(law, values, draws, {})
    inputs = {"D": 2e9, "D1": 1e9, "D2": np.array([1e8, 1e10, 1e12]), "N1": 1e9}
    rows = curve.loss_rows(**inputs)
    expected = [curve.loss(**inputs)]
    for b in range(5):
        one = Curve(law, {key: float(column[b]) for key, column in draws.items()}, None, {})
        expected.append(one.loss(**inputs))
    np.testing.assert_allclose(rows, expected, rtol=1e-13)
    np.testing.assert_array_equal(curve.loss_draws(**inputs), rows[1:])
    chosen = np.array([3, 0, 5])
    np.testing.assert_allclose(curve.loss_at(chosen, **inputs), np.array(expected)[chosen, [0, 1, 2]], rtol=1e-13)


def test_distance_to_the_data() -> None:
    laws = published(draws=0)
    inside = laws.upcycled.outside(D1=1e9, D2=D_RANGE[1], N1=1e8)
    assert inside == {"D1": 0.0, "D2": 0.0, "N1": 0.0}
    away = laws.upcycled.outside(D1=[1e9, 2e12], D2=0.0, N1=7e9)
    assert away == pytest.approx({"D1": np.log(2e12 / D_RANGE[1]), "D2": np.inf, "N1": np.log(7e9 / 1_085_859_424)})


def test_a_law_without_sizes_ignores_n1() -> None:
    curve = Curve(get_law("power_in_tokens"), {"A": 5.0, "alpha": 0.1, "E": 1.0}, None, {"N1": (1e6, 1e6)})
    assert not curve.depends_on_size
    np.testing.assert_array_equal(curve.loss(D=1e9, N1=[1e6, 1e9]), np.full(2, curve.loss(D=1e9)))
    assert curve.outside(D=1e9, N1=1e7) == pytest.approx({"N1": np.log(10)})


def test_two_step_fits_are_paired() -> None:
    """Draw b of the upcycled law takes the E of draw b of the first step; dense and MoE share it."""
    floor = fit_floor(scratch_data())
    up = replace(fit(get_law("joint"), upcycled_data(), floor=floor), lineage="up")
    laws = from_fits({"scratch": floor, "joint": up}, "fits in a test")
    assert laws.paired
    assert laws.n_draws == len((floor.draws or {})["E"]) > 0
    for curve in laws.curves:
        np.testing.assert_array_equal(curve.draws["E"], (floor.draws or {})["E"])  # type: ignore[index]
    groups = {group["lineage"]: group for group in floor.groups or []}
    assert laws.need("moe").values["A"] == groups["moe"]["parameters"]["A"]["value"]
    assert laws.need("dense").values["A"] == groups["dense"]["parameters"]["A"]["value"]
    assert any("8 experts, top-2" in note for note in laws.notes)
    other = from_fits({"scratch": replace(floor, data_sha256="other"), "joint": up}, "fits in a test")
    assert not other.paired


def test_separate_fits_are_paired_at_random_and_say_so(single_fits: dict[str, FitResult], tmp_path: Path) -> None:
    for name, result in single_fits.items():
        write_fit(result, tmp_path / f"{name}.json")
    laws = read_three_laws(tmp_path)
    assert not laws.paired
    assert laws.n_draws == 8
    assert any("paired at random" in note for note in laws.notes)
    assert (laws.n_expert, laws.top_k, laws.source) == (8, 2, f"fits in {tmp_path}")
    assert laws.need("dense").values == single_fits["scratch_dense"].values
    np.testing.assert_array_equal(laws.upcycled.draws["E"], np.full(8, 0.165))  # type: ignore[index]
    assert laws.need("moe").box["N1"] == (SIZES[0], SIZES[-1])


def test_what_is_missing_is_named(single_fits: dict[str, FitResult], tmp_path: Path) -> None:
    laws = from_fits({"joint": single_fits["joint"]}, "one fit")
    assert laws.moe is None
    with pytest.raises(UserError, match=r"one fit has no law of MoEs trained from scratch: add a fit of law"):
        laws.need("moe")
    with pytest.raises(UserError, match=r"none of `scratch_dense` is a law of upcycled losses"):
        from_fits({"scratch_dense": single_fits["scratch_dense"]}, "one fit")
    with pytest.raises(UserError, match="holds no fits"):
        read_three_laws(tmp_path)
    with pytest.raises(UserError, match="fitted without draws"):
        published(draws=0).upcycled.loss_draws(D1=1e9, D2=1e9, N1=1e9)
    with pytest.raises(UserError, match="the values lack A, B, E, alpha1"):
        Curve(get_law("joint"), {}, None, {})


def test_joint_laws_are_preferred(single_fits: dict[str, FitResult]) -> None:
    worse = replace(single_fits["joint"], loo_rms=1.0)
    fits = {"a": worse, "b": single_fits["joint"], "c": replace(worse, law="multiplicative", loo_rms=1e-9)}
    assert "upcycled of fit `b`" in from_fits(fits, "x").notes[0]


def test_laws_of_the_mixture_from_scratch_and_of_most_losses_are_preferred(single_fits: dict[str, FitResult]) -> None:
    """An error over other losses, of another mixture or of a few, does not compare."""
    scratch = {"scratch": replace(single_fits["scratch_moe"], n_expert=8, top_k=2)}
    whole = replace(single_fits["joint"], loo_rms=0.01)
    other, few = replace(whole, top_k=1, loo_rms=1e-9), replace(whole, n=whole.n - 1, loo_rms=1e-9)
    fits = {**scratch, "other": other, "few": few, "whole": whole, "worse": replace(whole, loo_rms=0.02)}
    assert "upcycled of fit `whole`" in " ".join(from_fits(fits, "x").notes)
    del fits["scratch"]
    assert "upcycled of fit `other`" in " ".join(from_fits(fits, "x").notes)


def test_laws_with_unequal_draws_are_refused() -> None:
    laws = published(draws=4)
    with pytest.raises(UserError, match="bands take as many of each"):
        ThreeLaws(laws.dense, laws.moe, laws.upcycled.first_draws(2), 8, 2, "x", False, False)


def test_laws_say_themselves_what_decisions_use_them_for(
    single_fits: dict[str, FitResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A law whose name begins like another's is not taken for one; inputs are those that a curve can give."""
    law = replace(get_law("joint_configuration"), name="joint_x")
    monkeypatch.setitem(LAWS, "joint_x", law)
    other = replace(single_fits["joint"], law="joint_x", loo_rms=0.0)
    three = from_fits({"a": other, **single_fits}, "test fits")
    assert three.upcycled.law.name == "joint"
    allowed = {"scratch": {"D", "N"}, "upcycled": {"D1", "D2", "N1"}}
    of = {role: {law.name for law in LAWS.values() if law.decides == role} for role in allowed}
    assert of["scratch"] == {"chinchilla", "power_in_tokens"}
    assert {"joint", "joint_no_interaction", "joint_offset", "multiplicative", "additive"} <= of["upcycled"]
    for role, inputs in allowed.items():
        assert all(set(LAWS[name].inputs) <= inputs for name in of[role])


def test_the_frame_of_the_data_spans_the_tokens_of_all_laws(single_fits: dict[str, FitResult]) -> None:
    three = from_fits(single_fits, "test fits")
    assert three.tokens == pytest.approx((TOKENS[0], TOKENS[-1] * 1.1))
    assert published(draws=0).tokens is None
