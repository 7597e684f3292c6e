"""One coherent world of simulated losses: the paper's laws where it prints them."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import own_model_sweep
import pandas as pd
import pytest
import simulated_study

from upcycle.decisions.simulated import (
    MIXTURE_EXPONENTS,
    TOKENS,
    choose_world,
    paper_world,
    simulate_losses,
    sparsity,
)
from upcycle.errors import UserError
from upcycle.laws.forms import get_law
from upcycle.laws.result import write_fit
from upcycle.laws.tables.losses import law_columns, read_losses
from upcycle.paper.tables_joint import table_2
from upcycle.study.columns import COLUMNS, MEASURED
from upcycle.study.plan import build_plan
from upcycle.study.study import load_study
from upcycle.workflow.rehearsal import planned_losses

ROOT = Path(__file__).parents[2]
D0 = 2_306_867_200.0


def from_scratch(A, alpha, B, beta, D, N1):
    return A * D**-alpha + B * N1**-beta + 0.165


def table_2_upcycled(D1, D2, N1):
    """Equation 12 with Table 2's constants, written out."""
    return 16.3 * D1**-0.043 * D2 ** (-0.085 + 7.98e-4 * math.log(D1)) + 8.53 * N1**-0.112 + 0.165


@pytest.fixture(scope="module")
def world():
    return paper_world()


@pytest.fixture(scope="module")
def planned():
    """Rows of the small study, without losses."""
    return planned_losses(simulated_study.workflow(Path("nowhere")).plan)


@pytest.fixture(scope="module")
def exact(planned, world):
    """The same with losses by law."""
    return simulate_losses(planned, world, noise=0.0, seed=0)


def test_losses_of_table_2_are_its_laws(exact):
    for row in exact.itertuples():
        if row.lineage == "dense":
            assert row.loss == pytest.approx(from_scratch(8.83, 0.088, 12.3, 0.116, row.D, row.N1), rel=1e-12)
        elif row.lineage == "moe":
            assert row.loss == pytest.approx(from_scratch(32.0, 0.161, 7.05, 0.080, row.D, row.N1), rel=1e-12)
        elif (row.n_expert, row.top_k) == (8, 2):
            assert row.loss == pytest.approx(table_2_upcycled(row.D1, row.D2, row.N1), rel=1e-12)


def test_a_dense_model_trained_on_is_one_of_all_of_its_tokens(world):
    rows = simulate_losses(planned_losses(own_model_sweep.plan_of()), world, noise=0.0, seed=0)
    dense = rows[rows["lineage"].isin(("dense", "cont"))]
    assert sorted(set(dense["role"])) == ["decay", "imported"]
    for row in dense.itertuples():
        tokens = own_model_sweep.D1 + row.D2
        assert row.loss == pytest.approx(from_scratch(8.83, 0.088, 12.3, 0.116, tokens, row.N1), rel=1e-12)
    assert world.truth(rows[rows["lineage"] == "cont"], "chinchilla") is None


def test_equation_11_is_the_least_squares_fit_to_table_2_where_both_hold(world):
    """F and E by the normal equations, and no other pair comes closer; the paper's numbers disagree by up to 0.015."""
    N1 = np.array([16 * n_layer * d_model**2 for n_layer, d_model in ((9, 320), (12, 480), (15, 640), (21, 832))])
    joint = np.array([table_2_upcycled(D0, D0, float(size)) for size in N1])
    sparse = 0.1 * (100 / 28) ** -1.87

    def errors(F, E):
        return sparse + F * (1.75 * N1) ** -0.34 + E - joint

    values = world.configuration
    best = errors(values["F"], values["E"])
    assert world.misfit == pytest.approx(best, abs=1e-12)
    assert best.sum() == pytest.approx(0, abs=1e-9)
    assert best @ (1.75 * N1) ** -0.34 == pytest.approx(0, abs=1e-9)
    for F, E in ((1.001, 1), (0.999, 1), (1, 1.0001), (1, 0.9999)):
        assert (errors(F * values["F"], E * values["E"]) ** 2).sum() > (best**2).sum()
    assert 0.01 < np.abs(best).max() < 0.02
    assert (values["beta1"], values["beta2"]) == (1.87, 0.34)


def test_other_mixtures_meet_equation_11_and_keep_table_8_s_exponents(exact, world):
    at_common = exact[(exact["lineage"] == "up") & (exact["D1"] == D0) & (exact["D2"] == D0)]
    others = at_common[(at_common["n_expert"] != 8) | (at_common["top_k"] != 2)]
    c = world.configuration
    P, N2 = others["N_total"] / others["N2"], others["N2"]
    assert np.allclose(others["loss"], c["A"] * P**-1.87 + c["F"] * N2.astype(float) ** -0.34 + c["E"], rtol=1e-12)
    for mixture, exponents in MIXTURE_EXPONENTS.items():
        law = world.mixtures[mixture]
        assert {name: law[name] for name in exponents} == exponents
        power = -law["alpha2"] + law["alpha3"] * math.log(D0)
        grid_loss = law["A"] * D0 ** -law["alpha1"] * (1 + D0) ** power + law["E"]
        N2 = 15 * 640**2 * (4 + 12 * mixture[1])
        assert grid_loss == pytest.approx(c["A"] * sparsity(mixture) ** -1.87 + c["F"] * N2**-0.34 + c["E"], rel=1e-10)
        assert law["E"] >= 0.165 * (1 - 1e-9)


def test_every_grid_falls_with_each_of_its_tokens(exact):
    grids = exact[(exact["lineage"] == "up") & (exact["model"] == "0.1B") & exact["sweeps"].str.contains("arch")]
    assert set(grids["moe"]) == {"4x1", "4x2", "8x1", "8x2"}
    for _, grid in grids.groupby("moe"):
        losses = grid.pivot(index="D1", columns="D2", values="loss").to_numpy()
        assert losses.shape == (4, 4)
        assert (np.diff(losses, axis=0) < 0).all()
        assert (np.diff(losses, axis=1) < 0).all()


def test_ablations_make_no_difference(exact):
    runs = exact[exact["sweeps"] == "auxiliary"]
    assert len(runs) == 2
    assert runs["loss"].nunique() == 1


def test_noise_is_gaussian_and_belongs_to_a_run_alone(planned, exact, world):
    noisy = simulate_losses(planned, world, noise=0.01, seed=3)
    deviates = (noisy["loss"] - exact["loss"]) / 0.01
    assert abs(deviates.mean()) < 4 / math.sqrt(len(deviates))
    assert deviates.std() == pytest.approx(1, abs=4 / math.sqrt(2 * len(deviates)))
    part = simulate_losses(planned.iloc[5:9], world, noise=0.01, seed=3)
    assert part["loss"].tolist() == noisy["loss"].iloc[5:9].tolist()
    other = simulate_losses(planned, world, noise=0.01, seed=4)
    assert abs(np.corrcoef(deviates, other["loss"] - exact["loss"])[0, 1]) < 4 / math.sqrt(len(deviates))
    assert (noisy["simulated"] == 1).all()


@pytest.mark.parametrize("noise", [-1e-3, math.nan, math.inf])
def test_a_noise_that_is_no_deviation_is_refused(planned, world, noise):
    with pytest.raises(UserError, match="a standard deviation in nats"):
        simulate_losses(planned, world, noise=noise, seed=0)


def test_a_model_without_a_law_is_named(planned, world):
    row = planned[(planned["moe"] == "4x2") & (planned["D1"] != TOKENS)].iloc[:1]
    stranger = row.assign(n_expert=16)
    with pytest.raises(UserError, match=rf"no law for run {row['id'].iloc[0]} \(up, mixture \(16,2\)\)"):
        world.losses(stranger)


def test_planned_rows_are_those_that_training_would_give(sweep):
    """As `upcycle losses` gathers them from run folders, but for what is measured."""
    results, plan = sweep
    gathered = read_losses(results / "losses.csv")
    rows = planned_losses(plan)
    assert list(rows.columns) == [column.name for column in COLUMNS]
    measured = [column.name for column in MEASURED]
    pd.testing.assert_frame_equal(rows.drop(columns=measured), gathered.drop(columns=measured))


def test_every_model_of_the_paper_s_study_has_a_loss(world):
    plan = build_plan(load_study(ROOT / "config" / "paper.yaml"), Path("nowhere"))
    losses = world.losses(planned_losses(plan))
    assert len(losses) == len(plan.finished_models) > 400
    assert (losses > 1).all()
    assert (losses < 4).all()


@pytest.mark.slow
def test_without_noise_the_fits_find_table_2(tmp_path):
    inputs = simulated_study.write_study(tmp_path, noise=0.0)
    table = table_2(inputs)
    printed = {
        "dense": {"A": 8.83, "B": 12.3, "α, α1": 0.088, "β": 0.116, "E": 0.165},
        "MoE": {"A": 32.0, "B": 7.05, "α, α1": 0.161, "β": 0.080, "E": 0.165},
        "upcycled": {"A": 16.3, "B": 8.53, "α, α1": 0.043, "α2": 0.085, "α3": 7.98e-4, "β": 0.112, "E": 0.165},
    }
    for row, values in printed.items():
        assert {name: table.loc[row, name] for name in values} == pytest.approx(values, rel=1e-3), row


def test_the_statements_hold_every_constant(world):
    text = " ".join(world.statements())
    for values in (world.dense, world.moe, world.joint, world.configuration, *world.mixtures.values()):
        for name, value in values.items():
            assert f"{name} = {value:.6g}" in text
    assert text.count("Ours: ") == 1 + len(world.mixtures)


# Laws that a user chooses


def test_without_interaction_the_printed_constants_are_those_of_equation_12_with_alpha3_0(planned, exact):
    world = choose_world(["joint_no_interaction"])
    loss = world.losses(planned)
    joint = (planned["lineage"] == "up") & (planned["n_expert"] == 8) & (planned["top_k"] == 2)
    for value, row in zip(loss[joint], planned[joint].itertuples(), strict=True):
        by_hand = 16.3 * row.D1**-0.043 * row.D2**-0.085 + 8.53 * row.N1**-0.112 + 0.165
        assert value == pytest.approx(by_hand, rel=1e-12)
    scratch = planned["lineage"] != "up"
    assert loss[scratch].tolist() == exact["loss"][scratch].tolist()
    assert world.truth(planned[joint], "joint")["alpha3"] == 0
    assert "alpha3" not in world.truth(planned[joint], "joint_no_interaction")
    assert paper_world().truth(planned[joint], "joint_no_interaction") is None


@pytest.fixture(scope="module")
def fits(joint_inputs, tmp_path_factory):
    """Files of fits to losses with noise: their constants are nobody else's."""
    folder = tmp_path_factory.mktemp("fits")
    for name, fit in joint_inputs.fits.items():
        write_fit(fit, folder / f"{name}.json")
    return folder


def test_a_fit_is_the_law_of_the_losses_that_it_describes_and_of_no_others(planned, exact, fits, joint_inputs):
    """`scratch` is of dense models and of MoEs from scratch, `joint` of models upcycled to 8 experts, top-2."""
    world = choose_world([str(fits / "scratch.json"), str(fits / "joint.json")])
    loss = world.losses(planned)
    mixture = (planned["n_expert"] == 8) & (planned["top_k"] == 2)
    parts = {"joint": (joint_inputs.fits["joint"], (planned["lineage"] == "up") & mixture)}
    for lineage, fit in joint_inputs.fits["scratch"].group_fits.items():
        parts[lineage] = fit, planned["lineage"] == lineage
    for fit, here in parts.values():
        law = get_law(fit.law)
        assert loss[here].tolist() == law.predict(fit.values, law_columns(planned[here], law.inputs)).tolist()
        assert np.abs(loss[here] - exact["loss"][here]).max() > 1e-6
        assert world.truth(planned[here], fit.law) == fit.values
    others = (planned["lineage"] == "up") & ~mixture
    assert others.any()
    assert loss[others].tolist() == exact["loss"][others].tolist()
    text = " ".join(world.statements())
    for fit, _ in parts.values():
        assert all(f"{name} = {value:.6g}" in text for name, value in fit.values.items())


def test_a_fit_of_one_size_is_the_law_of_that_size_alone(planned, exact, joint_inputs, tmp_path):
    size = float(planned.loc[planned["model"] == "44M", "N1"].iloc[0])
    values = {"A": 20.0, "alpha1": 0.1, "alpha2": 0.1, "alpha3": 0.001, "E": 1.0}
    entries = {name: {"value": value, "unit": "", "meaning": ""} for name, value in values.items()}
    whole = joint_inputs.fits["joint"]
    box = {"D1": whole.box["D1"], "D2": whole.box["D2"], "N1": [size, size]}
    one = dataclasses.replace(whole, law="multiplicative", parameters=entries, fixed={}, box=box)
    write_fit(one, tmp_path / "one.json")
    world = choose_world([str(tmp_path / "one.json")])
    here = (planned["model"] == "44M") & (planned["moe"] == "8x2") & (planned["lineage"] == "up")
    loss = world.losses(planned)
    D1, D2 = (planned.loc[here, name].astype(float) for name in ("D1", "D2"))
    assert np.allclose(loss[here], 20.0 * D1**-0.1 * (1 + D2) ** (-0.1 + 0.001 * np.log(D1)) + 1.0, rtol=1e-12)
    assert loss[~here].tolist() == exact["loss"][~here].tolist()
    assert f"Upcycled models with 8 experts, top-2 of {size:,.0f} parameters: " in world.statements()[0]


@pytest.mark.parametrize(
    ("law", "changes", "words"),
    [
        ("jiont", {}, "neither a law with printed constants .joint, joint_no_interaction. nor a fit's file"),
        ("joint.json", {"law": "configuration"}, "law `configuration` gives no loss of a model from its tokens"),
        ("joint.json", {"law": "chinchilla", "lineage": None}, "does not tell whether its losses are of dense models"),
    ],
)
def test_a_law_that_cannot_be_chosen_is_named(joint_inputs, tmp_path, law, changes, words):
    write_fit(dataclasses.replace(joint_inputs.fits["joint"], **changes), tmp_path / "joint.json")
    with pytest.raises(UserError, match=words):
        choose_world([str(tmp_path / law)])
