"""Losses of `expand`, which begins with mixtures, are never taken for those of upcycled dense models unasked."""

from pathlib import Path
from typing import Any

import pytest
from simulated_study import BUDGETS, MODELS, MOES, workflow, write_study

from upcycle.decisions.advice.measured import find_rivals
from upcycle.decisions.curves import from_fits
from upcycle.decisions.design.grid import from_study
from upcycle.errors import UserError
from upcycle.laws.fit import run_fit
from upcycle.laws.tables.losses import write_losses
from upcycle.paper.inputs import Inputs
from upcycle.study.check import check_names
from upcycle.study.spec import EXPAND

GRID = {"kind": "upcycled", "model": "0.1B", "dense_tokens": BUDGETS[:2], "tokens": BUDGETS}
CHANGES: dict[str, Any] = {
    "models": {"0.1B": MODELS["0.1B"]},
    "moes": {name: MOES[name] for name in ("4x2", "8x2")},
    "sweeps": {
        "grown": {"kind": "upcycled", "model": "0.1B", "moe": "8x2", "method": EXPAND, "parents": "small"}
        | {"tokens": BUDGETS},
        "small": GRID | {"moe": "4x2", "dense_tokens": BUDGETS[0]},
        "upcycled": GRID | {"moe": "8x2"},
        "continued": {"kind": "continued", "model": "0.1B", "dense_tokens": BUDGETS[1:3], "tokens": BUDGETS[:2]},
    },
    "fits": {
        "grown": {"law": "multiplicative", "sweep": "grown", "fixed": {"E": 1.0}},
        "upcycled": {"law": "multiplicative", "sweep": "upcycled"},
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    return write_study(tmp_path_factory.mktemp("study"), **CHANGES)


def test_figures_show_the_sweep_that_begins_with_dense_models_unless_another_is_named(inputs: Inputs) -> None:
    """Though the study names the expanded one first, and it is the largest."""
    assert inputs.grid().sweep in ("small", "upcycled")
    assert inputs.grid("grown").sweep == "grown"
    assert set(inputs.grid("grown").rows["method"]) == {EXPAND}


def test_a_law_of_expanded_mixtures_decides_nothing_about_dense_models(inputs: Inputs) -> None:
    assert (inputs.fits["grown"].method, inputs.fits["upcycled"].method) == (EXPAND, "copy")
    assert "Laws used: upcycled of fit `upcycled`" in from_fits(inputs.fits, "fits").notes[-1]
    with pytest.raises(UserError, match="none of `grown` is a law of upcycled losses"):
        from_fits({"grown": inputs.fits["grown"]}, "fits")


def test_an_expanded_mixture_is_no_rival_of_a_dense_model_of_as_many_tokens(inputs: Inputs) -> None:
    """The mixtures 8x2 of one D1: of dense models, and of mixtures whose tokens are as many."""
    shared = {BUDGETS[1]} & set(inputs.losses.loc[inputs.losses["method"] == EXPAND, "D1"])
    assert shared
    for each in find_rivals(inputs.losses, inputs.fits):
        assert set(each.upcycled.rows["method"]) == {"copy"}


def test_a_fit_of_several_methods_is_refused_and_chooses_by_where(inputs: Inputs, tmp_path: Path) -> None:
    losses = tmp_path / "losses.csv"
    write_losses(inputs.losses, losses)
    both = {"sweep": ["grown", "upcycled"]}
    with pytest.raises(UserError, match=r"`copy` \(8\), `expand` \(16\): .* `where: method == 'copy'`"):
        run_fit(losses, law="multiplicative", select=both, out=tmp_path / "fit.json")
    content = run_fit(
        losses, law="multiplicative", select=both | {"where": "method == 'copy'"}, out=tmp_path / "fit.json"
    )
    assert (content["n"], content["method"]) == (8, "copy")
    with pytest.raises(UserError, match="D1 of `expand` has tokens of a mixture"):
        run_fit(losses, law="unified", select={"sweep": "grown"}, out=tmp_path / "fit.json")


def test_a_study_that_fits_several_methods_in_one_is_refused_when_it_is_planned(tmp_path: Path) -> None:
    fits = {"both": {"law": "multiplicative", "sweep": ["grown", "upcycled"]}}
    with pytest.raises(UserError, match=r"fits.both: its sweeps have upcycled models of methods copy, expand"):
        check_names(workflow(tmp_path, **CHANGES | {"fits": fits}).study)
    fits["both"]["where"] = "method == 'expand'"
    check_names(workflow(tmp_path, **CHANGES | {"fits": fits}).study)


def test_no_design_is_made_of_a_sweep_that_begins_with_mixtures(tmp_path: Path) -> None:
    flow = workflow(tmp_path, **CHANGES)
    with pytest.raises(UserError, match="`grown` begins with mixtures"):
        from_study(flow.study, flow.plan, "grown")
