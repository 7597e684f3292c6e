"""The table that sets laws of the same losses side by side."""

import dataclasses

import pytest

from upcycle.errors import UserError
from upcycle.paper.render import to_markdown
from upcycle.paper.tables_laws import laws

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


def test_fits_to_other_losses_are_left_out(inputs):
    fewer = dataclasses.replace(inputs.fits["additive"], ids=inputs.fits["additive"].ids[:-1])
    others = dataclasses.replace(inputs, fits={**inputs.fits, "additive": fewer})
    assert "additive" not in laws(others).index
    with pytest.raises(UserError, match="no law is fitted to all runs of any upcycled sweep"):
        laws(dataclasses.replace(inputs, fits={"additive": fewer}))
