"""The tables that set laws of the same losses, their parameters and their crossings side by side."""

import dataclasses

import numpy as np
import pytest
import simulated_sweep as simulated

from upcycle.decisions.thresholds import d_star, threshold_d2, threshold_flops
from upcycle.errors import UserError
from upcycle.laws.context import with_context
from upcycle.laws.forms import get_law
from upcycle.laws.grouped import fit_by
from upcycle.paper.render import to_markdown
from upcycle.paper.tables_laws import laws
from upcycle.paper.tables_parameters import crossings, parameters
from upcycle.paper.three_laws import three_laws

FOUR = ("multiplicative", "multiplicative_no_interaction", "additive", "additive_no_interaction")


def test_each_law_stands_with_the_errors_of_its_fit_lowest_first(inputs):
    table = laws(inputs)
    assert set(table.index) == {name.replace("_", " ") for name in FOUR}
    assert table["leave one out"].is_monotonic_increasing
    assert table.index[0] == "multiplicative"  # the law that the losses were drawn from
    for name in FOUR:
        row, fit = table.loc[name.replace("_", " ")], inputs.fits[name]
        assert row["leave one out"] == fit.loo_rms
        assert row["parameters"] == len(fit.values)
        assert row["one budget out"] == max(entry["rms"] for entry in fit.certificate["folds"].values())
        assert row["largest D2 out"] == fit.certificate["extrapolation"]["D2"]["rms"]
    assert table["AIC"].min() == 0
    assert table.loc["multiplicative", "p of no interaction"] < 0.05
    assert table["p of no interaction"].isna().sum() == 2


def test_a_warning_of_a_fit_is_in_its_row(inputs):
    """As the last column, which is there only if there is a warning."""
    assert "warning" not in laws(inputs)
    warned = dataclasses.replace(inputs.fits["additive"], warnings={"mixed kernels": "losses of two kinds"})
    table = laws(dataclasses.replace(inputs, fits={**inputs.fits, "additive": warned}))
    assert table.columns[-1] == "warning"
    assert table.loc["additive", "warning"] == "mixed kernels"
    assert set(table["warning"]) == {"", "mixed kernels"}
    assert "mixed kernels" in to_markdown(table)


def test_draws_of_the_seeds_tell_the_papers_laws_apart(inputs):
    table = laws(inputs)
    column, best = "minus multiplicative, seeds drawn", "best of four, seeds drawn"
    assert table.loc["multiplicative", [column, f"{column} low", f"{column} high"]].tolist() == [0, 0, 0]
    additive, reference = (inputs.fits[name] for name in ("additive", "multiplicative"))
    errors = [np.array(fit.certificate["loo_rms_by_seeds"]) for fit in (additive, reference)]
    assert table.loc["additive", column] == additive.loo_rms - reference.loo_rms
    ends = np.quantile(errors[0] - errors[1], [0.025, 0.975])
    assert table.loc["additive", [f"{column} low", f"{column} high"]].tolist() == pytest.approx(ends)
    assert table[best].sum() == pytest.approx(1)
    assert table.loc["multiplicative", best] > 0.9  # the losses were drawn from it
    without = {
        name: dataclasses.replace(fit, certificate={**fit.certificate, "loo_rms_by_seeds": None})
        for name, fit in inputs.fits.items()
    }
    assert column not in laws(dataclasses.replace(inputs, fits=without))


def test_parameters_stand_with_each_kind_of_interval(inputs):
    table, fit = parameters(inputs), inputs.fits["multiplicative"]
    assert set(table.index) == {
        f"{name.replace('_', ' ')}: {each}" for name in FOUR for each in inputs.fits[name].values
    }
    row = table.loc["multiplicative: alpha3"]
    kinds = fit.certificate["intervals"]
    for column, ends in (
        ("residuals drawn", fit.intervals["alpha3"]),
        ("points drawn", kinds["pair"]["alpha3"]),
        ("noise of seeds", kinds["seed_noise"]["alpha3"]),
        ("profile", fit.certificate["profile"]["alpha3"]["interval"]),
    ):
        assert row[[column, f"{column} low", f"{column} high"]].tolist() == [fit.values["alpha3"], *ends]
    assert row["residuals drawn low"] < simulated.LAW["alpha3"] < row["residuals drawn high"]
    assert row["determined"] == ("yes" if fit.identifiable else "no")
    assert table.loc["multiplicative: alpha1", ["profile", "profile low"]].isna().all()  # it has no profile


def test_crossings_are_those_of_each_upcycled_law_with_the_law_from_scratch(inputs):
    rows = inputs.losses[inputs.losses["sweeps"].isin(["dense", "moe"])]
    columns = {name: rows[name].to_numpy() for name in ("D", "loss", "lineage")}
    scratch = fit_by(get_law("power_in_tokens"), columns, by="lineage", shared=["E"], draws=20)
    with pytest.raises(UserError, match="no law of MoEs trained from scratch"):
        crossings(inputs)
    study = dataclasses.replace(inputs, fits={**inputs.fits, "scratch": with_context(scratch, rows)})
    table = crossings(study)
    assert set(table.index) == {name.replace("_", " ") for name in FOUR}
    for name in FOUR:
        fits = {"scratch": study.fits["scratch"], name: inputs.fits[name]}
        three = three_laws(dataclasses.replace(inputs, fits=fits))
        size, d1 = float(rows["N1"].iloc[0]), float(simulated.BUDGETS[-1])
        for column, found in (
            ("D*", d_star(three, size)),
            ("D2, cost sunk", threshold_d2(three, size, d1)),
            ("D2, cost paid", threshold_flops(three, size, d1)),
        ):
            row = table.loc[name.replace("_", " ")]
            assert row[column] == found.root if found.root else np.isnan(row[column])
            assert row[f"{column}: none"] == found.shares["none"]
            if found.band:
                assert (row[f"{column} low"], row[f"{column} high"]) == found.band


def test_fits_to_other_losses_are_left_out(inputs):
    fewer = dataclasses.replace(inputs.fits["additive"], ids=inputs.fits["additive"].ids[:-1])
    others = dataclasses.replace(inputs, fits={**inputs.fits, "additive": fewer})
    assert "additive" not in laws(others).index
    with pytest.raises(UserError, match="no law is fitted to all runs of any upcycled sweep"):
        laws(dataclasses.replace(inputs, fits={"additive": fewer}))
