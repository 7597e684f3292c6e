"""Figures of Equations 11 and 12 show the losses, the fitted curves, and honest errors of what a fit had not seen."""

import dataclasses
import math
import re

import numpy as np
import pytest

from upcycle.errors import UserError
from upcycle.laws.fit import fit as fit_law
from upcycle.laws.forms import get_law
from upcycle.laws.tables.losses import law_columns
from upcycle.paper import style
from upcycle.paper.predictions import extrapolated, most_tokens, predicted, rows_of_largest_size
from upcycle.study import catalogue


def made(name, inputs, **options):
    with style.context():
        return catalogue.find_item(name, "figure").load()(inputs, **options)


def markers(axes) -> np.ndarray:
    """All points drawn as markers [N, 2]; curves are lines without markers."""
    lines = [line for line in axes.lines if line.get_linestyle() == "None"]
    return np.concatenate([line.get_xydata() for line in lines])


def curves(axes) -> list[np.ndarray]:
    return [line.get_xydata() for line in axes.lines if len(line.get_xdata()) == 100]


def rms_of_title(axes) -> float:
    return float(re.search(r"RMS ([\d.]+) nats", axes.get_title(loc="left")).group(1))


def sorted_rows(points) -> np.ndarray:
    return np.array(sorted(map(tuple, points)))


def equation_11(values, P, N2):
    return values["A"] * P ** -values["beta1"] + values["F"] * N2 ** -values["beta2"] + values["E"]


def equation_12(values, D1, D2, N1):
    power = -values["alpha2"] + values["alpha3"] * math.log(D1)
    return values["A"] * D1 ** -values["alpha1"] * D2**power + values["B"] * N1 ** -values["beta"] + values["E"]


def test_figure_5_shows_every_configuration_measured_and_predicted(joint_inputs):
    fit = joint_inputs.fits["configuration"]
    rows = joint_inputs.in_sweep("configuration")
    wanted = equation_11(fit.values, rows["N_total"] / rows["N2"], rows["N2"].astype(float))
    left, right = made("figure5", joint_inputs).axes
    assert np.allclose(sorted_rows(markers(left)), sorted_rows(zip(rows["loss"], wanted, strict=True)), rtol=1e-12)
    assert rms_of_title(left) == pytest.approx(np.sqrt(np.mean((wanted - rows["loss"]) ** 2)), rel=0.05)
    assert rms_of_title(right) == pytest.approx(fit.loo_rms, rel=0.05)
    assert np.sqrt(np.mean(markers(right)[:, 1] ** 2)) == pytest.approx(fit.loo_rms)
    assert len(markers(right)) == len(rows) == 36


def test_figure_6_holds_out_the_largest_budgets_and_the_largest_size(joint_inputs):
    fit = joint_inputs.fits["joint"]
    rows = joint_inputs.rows_of(fit)
    figure = made("figure6", joint_inputs)
    tops, bottoms = figure.axes[:3], figure.axes[3:]
    most = (rows["D1"] == rows["D1"].max()) | (rows["D2"] == rows["D2"].max())  # budgets are the same for all sizes
    largest = rows["N1"] == rows["N1"].max()
    assert [len(markers(axes)) for axes in tops] == [64, 28, 16]
    for top, bottom, held_out in zip(tops, bottoms, (None, most, largest), strict=True):
        values, shown = fit.values, rows
        if held_out is not None:
            rest = law_columns(rows[~held_out], ["D1", "D2", "N1", "loss"])
            values = fit_law(get_law("joint"), rest, fixed={"E": fit.values["E"]}, draws=0).values
            shown = rows[held_out]
        wanted = [equation_12(values, row.D1, row.D2, row.N1) for row in shown.itertuples()]
        points = sorted_rows(zip(shown["loss"], wanted, strict=True))
        assert np.allclose(sorted_rows(markers(top)), points, rtol=1e-8)
        errors = sorted_rows(zip(points[:, 0], points[:, 1] - points[:, 0], strict=True))
        assert np.allclose(sorted_rows(markers(bottom)), errors, atol=1e-8)
        assert rms_of_title(top) == pytest.approx(np.sqrt(np.mean(errors[:, 1] ** 2)), rel=0.05)


def test_figure_6_shows_no_extrapolation_that_the_losses_cannot_give(joint_inputs):
    """Two sizes: without the larger one nothing tells B from E; the panel is left out, not made up."""
    fit = joint_inputs.fits["joint"]
    rows = joint_inputs.rows_of(fit)
    two = rows["N1"].isin(sorted(rows["N1"].unique())[:2]).to_numpy()
    ids = rows["id"][two].tolist()
    few = dataclasses.replace(fit, ids=ids)
    figure = made("figure6", dataclasses.replace(joint_inputs, fits={"joint": few}))
    titles = [axes.get_title(loc="left").splitlines()[0] for axes in figure.axes[:2]]
    assert titles == ["fitted to all", "largest $D_1$ or $D_2$ held out"]
    assert len(figure.axes) == 4


def test_an_extrapolation_needs_points_to_fit_and_points_to_predict(joint_inputs):
    fit = joint_inputs.fits["joint"]
    rows = joint_inputs.rows_of(fit)
    nothing = np.zeros(len(rows), dtype=bool)
    assert extrapolated(fit, rows, nothing) is None
    assert extrapolated(fit, rows, ~nothing) is None
    one_size = rows[rows["N1"] == rows["N1"].max()].reset_index(drop=True)
    assert not rows_of_largest_size(one_size).any()
    one_budget = rows[(rows["D1"] == rows["D1"].min()) & (rows["D2"] == rows["D2"].min())].reset_index(drop=True)
    assert not most_tokens(one_budget).any()


def test_the_largest_budgets_are_those_of_each_size(joint_inputs):
    rows = joint_inputs.rows_of(joint_inputs.fits["joint"])
    smallest = rows["N1"] == rows["N1"].min()
    kept = rows[~smallest | (rows["D2"] < rows["D2"].max())].reset_index(drop=True)
    most = most_tokens(kept)
    small = (kept["N1"] == kept["N1"].min()).to_numpy()
    assert kept["D2"][small & most & (kept["D1"] < kept["D1"].max())].unique().tolist() == [sorted(set(rows["D2"]))[-2]]


def test_figure_13_has_a_panel_a_number_of_used_experts_and_equation_11_in_each(joint_inputs):
    fit = joint_inputs.fits["configuration"]
    rows = joint_inputs.rows_of(fit)
    panels = made("figure13", joint_inputs).axes
    assert len(panels) == 3
    for axes, top_k in zip(panels, (1, 2, 4), strict=True):
        here = rows[rows["top_k"] == top_k]
        assert np.allclose(sorted_rows(markers(axes)), sorted_rows(here[["N2", "loss"]].to_numpy()))
        sparsities = [(4 + 12 * n_expert) / (4 + 12 * top_k) for n_expert in (4, 8, 16)]
        assert axes.get_title(loc="left") == f"top-{top_k}\n$P$ = {', '.join(f'{P:.3g}' for P in sparsities)}"
        for curve, P in zip(curves(axes), sparsities, strict=True):
            assert np.allclose(curve[:, 1], equation_11(fit.values, P, curve[:, 0]), rtol=1e-12)
        assert curves(axes)[0][0, 0] == here["N2"].min()


def test_figure_14_has_a_curve_for_each_common_budget(joint_inputs):
    fit = joint_inputs.fits["joint"]
    rows = joint_inputs.rows_of(fit)
    equal = rows[rows["D1"] == rows["D2"]]
    axes = made("figure14", joint_inputs).axes[0]
    assert np.allclose(sorted_rows(markers(axes)), sorted_rows(equal[["N1", "loss"]].to_numpy()))
    for curve, D in zip(curves(axes), sorted(set(equal["D1"])), strict=True):
        wanted = [equation_12(fit.values, D, D, N1) for N1 in curve[:, 0]]
        assert np.allclose(curve[:, 1], wanted, rtol=1e-12)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["577M", "1.15B", "2.31B", "4.61B"]


def test_figure_14_takes_other_pairs_where_none_is_equal_and_at_most_six(joint_inputs):
    fit = joint_inputs.fits["joint"]
    rows = joint_inputs.rows_of(fit)
    unequal = dataclasses.replace(fit, ids=rows["id"][rows["D1"] != rows["D2"]].tolist())
    axes = made("figure14", dataclasses.replace(joint_inputs, fits={"joint": unequal})).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == len(curves(axes)) == 6
    assert labels[0] == "577M, 1.15B"


def test_figure_14_without_common_budgets_says_so(joint_inputs):
    fit = joint_inputs.fits["joint"]
    rows = joint_inputs.rows_of(fit)
    apart = dataclasses.replace(fit, ids=rows.drop_duplicates(["D1", "D2"])["id"].tolist())
    with pytest.raises(UserError, match="no D1 and D2 are common to 3 sizes"):
        made("figure14", dataclasses.replace(joint_inputs, fits={"joint": apart}))


@pytest.mark.parametrize(
    ("name", "law"),
    [("figure5", "configuration"), ("figure6", "joint"), ("figure13", "configuration"), ("figure14", "joint")],
)
def test_a_missing_law_and_a_fit_of_other_losses_are_named(joint_inputs, name, law):
    with pytest.raises(UserError, match=f"no fit of law `{law}`: add one under `fits`"):
        made(name, dataclasses.replace(joint_inputs, fits={}))
    other = dataclasses.replace(joint_inputs.fits[law], ids=["stranger"])
    with pytest.raises(UserError, match=rf"the fit of `{law}` is of runs that losses\.csv does not have \(stranger"):
        made(name, dataclasses.replace(joint_inputs, fits={law: other}))


def test_of_several_fits_of_a_law_the_one_to_most_runs_is_taken(joint_inputs):
    fit = joint_inputs.fits["joint"]
    both = dataclasses.replace(joint_inputs, fits={"part": dataclasses.replace(fit, ids=fit.ids[:9]), "whole": fit})
    assert both.fit_of("joint") is fit


def test_predictions_are_the_law_at_each_row(joint_inputs):
    fit = joint_inputs.fits["joint"]
    rows = joint_inputs.rows_of(fit)
    assert rows["id"].tolist() == fit.ids
    assert np.log(predicted(fit, rows) / rows["loss"].to_numpy()) == pytest.approx(fit.residuals_log, abs=1e-12)
