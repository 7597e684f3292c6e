"""Figures and tables of a simulated sweep show its losses and its fits, the same bytes each time."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import simulated_sweep as simulated

from upcycle.errors import UserError
from upcycle.paper import style
from upcycle.paper.comparisons import clear_difference, leads
from upcycle.paper.draw import draw, write_table
from upcycle.paper.inputs import Inputs
from upcycle.study import catalogue

pytestmark = pytest.mark.slow

OF_ONE_SIZE = {"figure3", "figure4", "figure12", "overview", "residuals"}
"""Figures of one grid of D1 and D2; others need several sizes, and the laws of all three kinds of training."""
OF_ABLATIONS = {*(f"figure{n}" for n in range(7, 12)), "learning_rates"}
OTHERS = {"continued": "own_model", "methods": "methods_inputs", "routing": "routed"}
OTHERS |= {"forecast_errors": "forecast_inputs"}
SUITS = OTHERS | dict.fromkeys(OF_ONE_SIZE, "inputs") | dict.fromkeys(OF_ABLATIONS, "ablations")
"""The study that suits a figure, where that is not the one of several sizes."""


@pytest.fixture(scope="module", params=catalogue.catalogue("figure"))
def drawn(request):
    """Each figure in turn, of the simulated study that suits it."""
    inputs = request.getfixturevalue(SUITS.get(request.param, "joint_inputs"))
    return request.param, made(request.param, inputs)


def made(name, inputs, **options):
    with style.context():
        return catalogue.find_item(name).load()(inputs, **options)


def test_a_figure_is_written_as_svg_and_pdf_with_equal_bytes_each_time(inputs, tmp_path):
    first = [path.read_bytes() for path in draw("figure4", inputs, tmp_path / "first")]
    second = [path.read_bytes() for path in draw("figure4", inputs, tmp_path / "second")]
    assert first == second
    assert first[0].startswith(b"<?xml")
    assert first[1].startswith(b"%PDF")
    assert b">held-out loss (nats per token)</text>" in first[0]
    assert b"font-family: 'DejaVu Sans', Verdana, sans-serif" in first[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.pdf", "first.svg", "second.pdf", "second.svg"]


def test_nothing_of_a_figure_is_cut_off_or_covered(drawn):
    """Every text lies within the page, and no legend covers a point."""
    _, figure = drawn
    with style.context():
        figure.draw_without_rendering()
    page = figure.bbox.padded(1)
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1
        if legend := axes.get_legend():
            covered = legend.get_window_extent()
            points = np.concatenate([axes.transData.transform(line.get_xydata()) for line in axes.lines])
            assert not any(covered.contains(x, y) for x, y in points)


def test_every_axis_is_labelled_with_its_unit_or_symbol(drawn):
    _, figure = drawn
    first = figure.axes[0].get_ylabel() or figure.axes[0].get_xlabel()  # rows of names have no label
    for label in (first, figure.axes[-1].get_xlabel()):
        assert any(word in label for word in ("nats", "token", "rate", "$")), label


def test_a_figure_says_that_its_losses_are_simulated_and_only_then(drawn):
    """The small sweep's losses are not marked; the other study's are."""
    name, figure = drawn
    title = figure._suptitle
    assert (title.get_text() if title else None) == (None if name in SUITS else "SIMULATED LOSSES")


def test_a_study_of_simulated_losses_says_so_in_figures_and_tables(inputs, tmp_path):
    marked = dataclasses.replace(inputs, losses=inputs.losses.assign(simulated=1))
    assert made("overview", marked)._suptitle.get_text() == "SIMULATED LOSSES"
    assert made("overview", inputs)._suptitle is None
    write_table("table1", marked, tmp_path / "t")
    assert (tmp_path / "t.md").read_text().startswith("SIMULATED LOSSES. Table 1.")
    assert (tmp_path / "t.csv").read_text().startswith("SIMULATED LOSSES: leave-one-out RMS (nats),")


def test_figure_3_draws_each_trunk_through_all_its_segments_from_the_copy_on(inputs):
    axes = made("figure3", inputs).axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) > 5]
    assert len(curves) == 5
    for line in curves:
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        assert (np.diff(x) > 0).all()
        assert x[-1] >= 0.89 * simulated.BUDGETS[-1]  # the trunk ends where the last decay begins
        assert y[0] < y[3]  # re-warming: the copied model, at 0, is better than the first steps
    markers = [line for line in axes.lines if len(line.get_xdata()) == 5]
    shown = sorted(float(y) for line in markers for y in line.get_ydata())
    assert np.allclose(shown, sorted(inputs.grid().rows["loss"]))


def test_figure_3_without_run_folders_names_the_missing_file(inputs, tmp_path):
    with pytest.raises(UserError, match=r"spec\.json: No such file"):
        made("figure3", dataclasses.replace(inputs, runs=tmp_path))


def test_figure_4_shows_the_fitted_exponents_and_their_line(inputs):
    fit = inputs.fit(inputs.grid(), "power", by="D1")
    bottom = made("figure4", inputs).axes[1]
    shown = [float(line.get_ydata()[0]) for line in bottom.lines if len(line.get_xdata()) == 1]
    assert shown == [-group["parameters"]["alpha"]["value"] for group in fit.groups]
    line = next(line for line in bottom.lines if len(line.get_xdata()) == 100)
    slope = np.diff(line.get_ydata())[0] / np.diff(np.log(line.get_xdata()))[0]
    assert slope == pytest.approx(fit.relations["exponent_vs_d1"]["parameters"]["gamma"]["value"])
    assert slope == pytest.approx(simulated.LAW["alpha3"], rel=0.1)


def test_intervals_that_would_all_be_cut_are_left_out_and_said_to_be(inputs):
    """One interval that fits on the panel keeps all bars; without any, words stand where bars would show nothing."""
    name = next(name for name, fit in inputs.fits.items() if fit.law == "power" and fit.by == "D1")

    def bottom(change):
        groups = [
            group | {"intervals": {**group["intervals"], "alpha": change(k, group["parameters"]["alpha"]["value"])}}
            for k, group in enumerate(inputs.fits[name].groups)
        ]
        fits = {**inputs.fits, name: dataclasses.replace(inputs.fits[name], groups=groups)}
        return made("figure4", dataclasses.replace(inputs, fits=fits)).axes[1]

    whole = bottom(lambda k, value: [value - 1e-6, value + 1e-6] if k == 2 else [-9.0, 9.0])
    assert (len(whole.collections), whole.get_title(loc="left")) == (5, "")
    cut = bottom(lambda k, value: [-9.0, 9.0])
    assert len(cut.collections) == 0
    assert cut.get_title(loc="left") == "every 95 % interval reaches\nbeyond this panel"


def test_curves_are_named_at_their_ends(inputs):
    for name in ("overview", "figure3", "figure4", "figure12"):
        figure = made(name, inputs)
        top = figure.axes[0]
        assert not figure.legends
        assert top.get_legend() is None
        named = [text.get_text().removeprefix("$D_1$ ") for text in top.texts]
        assert {"262k", "524k", "1.05M", "2.1M", "4.19M"} <= set(named), name
        assert ({"dense", "scratch"} <= set(named)) == (name == "overview")


def test_a_figure_of_words_carries_them_as_its_description():
    with style.context():
        figure = style.in_words("Nothing <lies> within the data.", mark="")
        assert b"<dc:description>Nothing &lt;lies&gt; within the data.</dc:description>" in style.encode(figure, "svg")
        assert style.encode(figure, "pdf").startswith(b"%PDF")


def test_figure_12_shows_the_fitted_factors(inputs):
    fit = inputs.fit(inputs.grid(), "power", by="D1")
    bottom = made("figure12", inputs).axes[1]
    shown = [float(line.get_ydata()[0]) for line in bottom.lines if len(line.get_xdata()) == 1]
    assert shown == [group["parameters"]["A"]["value"] for group in fit.groups]


def test_overview_draws_the_measured_leads(inputs):
    bottom = made("overview", inputs).axes[1]
    shown = sorted(float(y) for line in bottom.lines if len(line.get_xdata()) == 5 for y in line.get_ydata())
    assert np.allclose(shown, sorted(lead.nats for lead in leads(inputs, inputs.grid())))


def test_residuals_are_the_leave_one_out_errors(inputs):
    panel = made("residuals", inputs).axes[0]
    errors = [float(y) for line in panel.lines for y in line.get_ydata() if len(line.get_xdata()) == 5]
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(inputs.fit(inputs.grid(), "multiplicative").loo_rms)


def test_table_1_holds_the_leave_one_out_errors_and_the_true_law_wins(inputs):
    table = made("table1", inputs)
    assert list(table.columns) == ["(8,2)"]
    assert table["(8,2)"].tolist() == [inputs.fits[name].loo_rms for name in list(simulated.FITS)[:4]]
    assert table["(8,2)"].idxmin() == "mult."


def test_table_8_holds_exponents_with_intervals(inputs, tmp_path):
    table = made("table8", inputs)
    assert table["(8,2) low"].le(table["(8,2)"]).all()
    assert table["(8,2)"].le(table["(8,2) high"]).all()
    write_table("table8", inputs, tmp_path / "table8")
    assert pd.read_csv(tmp_path / "table8.csv", index_col=0).equals(table)
    text = (tmp_path / "table8.md").read_text()
    assert text.startswith("Table 8. ")
    assert "[" in text.splitlines()[4]


def test_laws_fitted_to_different_runs_are_not_compared(inputs):
    fewer = dataclasses.replace(inputs.fits["additive"], ids=inputs.fits["additive"].ids[:-1])
    mixed = dataclasses.replace(inputs, fits={**inputs.fits, "additive": fewer})
    with pytest.raises(UserError, match="take different runs"):
        made("table1", mixed)


def test_a_missing_fit_is_named_with_the_mend(inputs):
    none = dataclasses.replace(inputs, fits={})
    with pytest.raises(UserError, match=r"no fit of law `power` by D1 to sweep `upcycled`, tiny \(8,2\): add one"):
        made("figure4", none)


def test_a_sweep_without_upcycled_models_is_refused(inputs):
    with pytest.raises(UserError, match="sweep `dense` has no upcycled run"):
        made("figure4", inputs, sweep="dense")
    with pytest.raises(UserError, match=r"no finished run of sweep `nosuch`; sweeps in it: `dense`, `moe`, `upcycled`"):
        made("figure4", inputs, sweep="nosuch")


def test_a_figure_of_one_grid_takes_the_model_asked_for(joint_inputs):
    assert joint_inputs.grid("upcycled", "0.1B").model == "0.1B"
    with pytest.raises(UserError, match=r"sweep `upcycled` has no upcycled run of model `0\.3B`; did you mean `0"):
        made("figure4", joint_inputs, sweep="upcycled", model="0.3B")


def test_a_sweep_with_another_axis_has_a_grid_for_each_of_its_values(inputs):
    other = inputs.losses.assign(id=inputs.losses["id"] + "x", aux_coef=0.02)
    both = dataclasses.replace(inputs, losses=pd.concat([inputs.losses, other]))
    assert [grid.label for grid in both.grids("upcycled")] == ["(8,2) aux_coef 0.001", "(8,2) aux_coef 0.02"]
    assert [set(grid.rows["aux_coef"]) for grid in both.grids("upcycled")] == [{0.001}, {0.02}]
    assert [grid.label for grid in inputs.grids("upcycled")] == ["(8,2)"]


def test_several_runs_at_one_point_are_no_grid(inputs):
    twice = pd.concat([inputs.losses, inputs.losses.assign(id=inputs.losses["id"] + "x", dense_parent="other")])
    with pytest.raises(UserError, match=r"several runs at one D1, D2 and seed .* whose dense parents differ"):
        dataclasses.replace(inputs, losses=twice).grid("upcycled")


def test_the_larger_of_two_fits_of_one_law_is_taken(inputs):
    fit = inputs.fits["multiplicative"]
    part = dataclasses.replace(fit, ids=fit.ids[:20])
    both = dataclasses.replace(inputs, fits={"part": part, "whole": fit})
    assert both.fit(both.grid(), "multiplicative") is fit


def test_trunks_that_were_not_cooled_down_are_no_finished_models(copied):
    table = pd.read_csv(copied / "losses.csv", keep_default_na=False)
    table.loc[0, "role"] = "trunk"
    table.to_csv(copied / "losses.csv", index=False)
    read = Inputs.read(copied / "losses.csv", copied / "fits", copied / "runs")
    assert len(read.losses) == len(table) - 1


def test_a_damaged_fit_is_named(copied):
    (copied / "fits" / "additive.json").write_text("{")
    with pytest.raises(UserError, match=r"additive\.json is damaged"):
        Inputs.read(copied / "losses.csv", copied / "fits", copied / "runs")


def test_leads_are_differences_of_means_at_equal_tokens(inputs):
    grid = inputs.grid()
    scratch = inputs.baseline(grid, "moe").set_index("D")["loss"]
    found = leads(inputs, grid)
    assert len(found) == 25
    own = grid.rows.set_index(["D1", "D2"])["loss"]
    assert all(lead.nats == pytest.approx(scratch[lead.D2] - own[lead.D1, lead.D2]) for lead in found)
    counted = leads(inputs, grid, dense_tokens_count=True)
    assert [(lead.D1, lead.D2) for lead in counted] == [(D, D) for D in simulated.BUDGETS[:4]]


def test_a_clear_difference_grows_with_the_noise_and_with_little_evidence(inputs):
    noise = inputs.noise
    assert clear_difference(noise) == pytest.approx(2.447 * math.sqrt(2) * noise.deviation, rel=1e-3)  # t at 6 degrees
    assert clear_difference(dataclasses.replace(noise, freedom=1)) > clear_difference(noise)


def test_other_mixtures_get_columns_of_their_own(tmp_path):
    moes = {"8x2": {"n_expert": 8, "top_k": 2}, "4x2": {"n_expert": 4, "top_k": 2}}
    budgets = simulated.BUDGETS[:4]
    grid = {"kind": "upcycled", "model": "tiny", "moe": ["4x2", "8x2"], "tokens": budgets, "dense_tokens": budgets}
    plan = simulated.write_results(tmp_path, fits=(), moes=moes, sweeps={"upcycled": grid})
    read = simulated.read_inputs(tmp_path, plan)
    one = simulated.read_inputs(tmp_path, plan).grids()
    assert [each.label for each in one] == ["(4,2)", "(8,2)"]
    assert all(len(each.rows) == 16 for each in one)
    with pytest.raises(UserError, match=r"`multiplicative` to sweep `upcycled`, tiny \(4,2\)"):
        made("table8", read)


def test_run_records_that_are_damaged_are_named(copied, sweep):
    run_id = sweep[1].sweeps["upcycled"][0]
    (copied / "runs" / run_id / "spec.json").write_text("[")
    with pytest.raises(UserError, match=r"spec\.json is damaged"):
        simulated.read_inputs(copied, sweep[1]).record(run_id, "spec")
    shutil.rmtree(copied)
    assert json.loads((sweep[0] / "runs" / run_id / "spec.json").read_text())["id"] == run_id
