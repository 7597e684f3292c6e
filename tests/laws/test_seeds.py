"""Leave-one-out errors in draws of the seeds: the measured losses give the measured error; laws share their draws."""

from pathlib import Path

import numpy as np
import pytest

from upcycle.laws.certificate.seeds import SEED_DRAWS, errors_by_seeds, seed_draws
from upcycle.laws.certificate.validate import leave_one_out
from upcycle.laws.fit import run_fit
from upcycle.laws.forms import get_law
from upcycle.laws.solver.prepare import prepare
from upcycle.laws.solver.search import search
from upcycle.laws.tables.losses import law_columns, read_losses, select_losses

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "default-2026-11-22" / "losses.csv"


@pytest.fixture(scope="module")
def rows():
    losses = read_losses(REFERENCE)
    return select_losses(losses, sweep="upcycled"), losses


def test_a_draw_takes_a_loss_of_some_seed_where_there_are_several(rows):
    fitted, losses = rows
    drawn = seed_draws(fitted, losses)
    assert set(drawn) == set(fitted["id"])
    repeated = losses[["seeds" in str(names).split(";") for names in losses["sweeps"]]]
    for run_id, own in zip(fitted["id"], fitted[["D1", "D2", "loss"]].itertuples(index=False), strict=True):
        same = repeated[(repeated["D1"] == own.D1) & (repeated["D2"] == own.D2)]
        assert set(drawn[run_id]) == (set(same["loss"]) if len(same) else {own.loss})
    assert seed_draws(fitted, fitted) is None  # no run was repeated
    twins = losses.assign(seed=0)  # of one seed they differ in something else
    assert seed_draws(fitted, twins) is None


@pytest.mark.parametrize("name", ["multiplicative", "additive"])
def test_the_measured_losses_give_the_leave_one_out_error(rows, name):
    fitted, _ = rows
    law = get_law(name)
    prepared = prepare(law, law_columns(fitted, [*law.inputs, "loss"]), {})
    left_out = leave_one_out(prepared, search(prepared))
    measured_BN = np.stack([prepared.response_N, prepared.response_N])
    assert errors_by_seeds(prepared, left_out.refits, measured_BN) == pytest.approx([left_out.rms] * 2, rel=1e-6)


def test_a_fit_has_an_error_for_each_draw(tmp_path):
    found = run_fit(REFERENCE, law="multiplicative", select={"sweep": ["upcycled"]}, out=tmp_path / "fit.json")
    errors = found["certificate"]["loo_rms_by_seeds"]
    assert len(errors) == SEED_DRAWS
    assert min(errors) < found["loo_rms"] < max(errors)
    dense = run_fit(REFERENCE, law="power_in_tokens", select={"sweep": ["dense"]}, out=tmp_path / "dense.json")
    assert "loo_rms_by_seeds" not in dense["certificate"]
