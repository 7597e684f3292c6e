"""Table 2 from fits, Tables 3 to 6 from what the runs of a study record."""

import dataclasses
import math

import pandas as pd
import pytest
import simulated_study
import simulated_sweep

from upcycle.errors import UserError
from upcycle.laws.result import FitResult
from upcycle.paper.draw import write_table
from upcycle.study import catalogue
from upcycle.study.spec import RunSpec


def made(name, inputs, **options):
    return catalogue.find_item(name, "table").load()(inputs, **options)


def lineage_fits(inputs) -> dict[str, FitResult]:
    """The two laws from scratch as fits of their own."""
    return {group["lineage"]: FitResult.from_json(group) for group in inputs.fits["scratch"].groups}


def test_table_2_holds_the_three_laws_with_their_intervals(joint_inputs):
    table = made("table2", joint_inputs)
    assert list(table.index) == ["dense", "MoE", "upcycled"]
    scratch, joint = lineage_fits(joint_inputs), joint_inputs.fits["joint"]
    names = {"A": "A", "B": "B", "β": "beta", "E": "E"}
    for row, fit in (("dense", scratch["dense"]), ("MoE", scratch["moe"]), ("upcycled", joint)):
        own = names | ({"α, α1": "alpha1", "α2": "alpha2", "α3": "alpha3"} if row == "upcycled" else {"α, α1": "alpha"})
        for column, name in own.items():
            assert table.loc[row, column] == fit.values[name]
            if name in fit.intervals:
                assert [table.loc[row, f"{column} low"], table.loc[row, f"{column} high"]] == fit.intervals[name]
    assert table.loc[["dense", "MoE"], ["α2", "α3"]].isna().all(axis=None)


def test_table_2_has_one_floor_that_the_upcycled_law_holds(joint_inputs, tmp_path):
    table = made("table2", joint_inputs)
    assert table["E"].nunique() == 1
    assert math.isnan(table.loc["upcycled", "E low"])
    assert table.loc["dense", "E low"] < table.loc["dense", "E"] < table.loc["dense", "E high"]
    write_table("table2", joint_inputs, tmp_path / "table2")
    written = pd.read_csv(tmp_path / "table2.csv", index_col=0).rename_axis("law")
    pd.testing.assert_frame_equal(written, table, check_exact=True)


def test_table_2_takes_separate_fits_too(joint_inputs):
    fits = {"joint": joint_inputs.fits["joint"], **lineage_fits(joint_inputs)}
    separate = dataclasses.replace(joint_inputs, fits=fits)
    pd.testing.assert_frame_equal(made("table2", separate), made("table2", joint_inputs))


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("moe", "MoEs from scratch: add one with `by: lineage`"),
        ("dense", "dense models: add"),
        ("joint", "law `joint`"),
    ],
)
def test_table_2_names_the_law_that_is_missing(joint_inputs, gone, words):
    fits = {"joint": joint_inputs.fits["joint"], **lineage_fits(joint_inputs)}
    del fits[gone]
    with pytest.raises(UserError, match=words):
        made("table2", dataclasses.replace(joint_inputs, fits=fits))


def test_table_3_counts_as_the_paper_does(joint_inputs):
    table = made("table3", joint_inputs)
    assert list(table.columns) == ["n_layer", "d_model", "n_head", "N_dense", "N_total of 8 experts"]
    assert table.loc["15M"].tolist() == [9, 320, 4, 14_751_680, 92_189_120]
    assert table.loc["44M"].tolist() == [12, 480, 8, 44_248_800, 276_538_080]
    assert table.loc["0.1B"].tolist() == [15, 640, 8, 98_323_840, 614_496_640]
    assert table.loc["0.2B"].tolist() == [21, 832, 8, 232_623_040, 1_453_845_952]


def test_table_3_of_dense_models_alone_has_no_mixture(joint_inputs):
    dense = joint_inputs.losses[joint_inputs.losses["lineage"] == "dense"]
    table = made("table3", dataclasses.replace(joint_inputs, losses=dense))
    assert list(table.columns) == ["n_layer", "d_model", "n_head", "N_dense"]


def test_settings_come_from_run_folders_where_no_plan_is_at_hand(inputs):
    assert not inputs.specs
    assert made("table3", inputs).loc["tiny", ["n_layer", "d_model", "n_head"]].tolist() == [2, 64, 2]
    assert made("table5", inputs).loc["tiny", ["LR dense", "LR MoE"]].tolist() == [8e-3, 4e-3]


def test_a_damaged_spec_is_named(copied, sweep):
    run_id = sweep[1].sweeps["dense"][0]
    (copied / "runs" / run_id / "spec.json").write_text('{"model": {}}')
    with pytest.raises(UserError, match=r"spec\.json is damaged: .*train the run again"):
        made("table3", simulated_sweep.read_inputs(copied, sweep[1]))


def test_table_4_holds_what_all_runs_share(joint_inputs):
    table = made("table4", joint_inputs)["setting"]
    assert table["context length (tokens)"] == 1024
    assert [table[name] for name in ("Adam β1", "Adam β2", "Adam ε")] == [0.9, 0.95, 1e-8]
    assert [table[name] for name in ("weight decay", "gradient clipping")] == [0.1, 1.0]


def changed(spec: RunSpec, section: str, **values) -> RunSpec:
    return spec.model_copy(update={section: getattr(spec, section).model_copy(update=values)})


def test_table_4_shows_every_value_where_runs_differ(joint_inputs):
    one = joint_inputs.losses["id"].iloc[0]
    specs = {**joint_inputs.specs, one: changed(joint_inputs.specs[one], "optim", weight_decay=0.01)}
    assert made("table4", dataclasses.replace(joint_inputs, specs=specs)).loc["weight decay", "setting"] == (
        "0.0100, 0.100"
    )


def test_table_5_takes_the_longest_runs(joint_inputs):
    table = made("table5", joint_inputs)
    assert table["LR dense"].tolist() == [8e-3, 4e-3, 4e-3, 2e-3]
    assert table["LR MoE"].tolist() == [2e-3] * 4
    assert table["max. iterations"].tolist() == [simulated_study.BUDGETS[-1] // (512 * 1024)] * 4
    assert table["init. size"].tolist() == [math.sqrt(2 / (5 * width)) for width in (320, 480, 640, 832)]
    rows = joint_inputs.losses
    short = rows[(rows["lineage"] == "dense") & (rows["D"] == simulated_study.BUDGETS[0])]["id"].iloc[0]
    specs = {**joint_inputs.specs, short: changed(joint_inputs.specs[short], "optim", lr=1.0)}
    assert made("table5", dataclasses.replace(joint_inputs, specs=specs))["LR dense"].tolist() == [
        8e-3,
        4e-3,
        4e-3,
        2e-3,
    ]


def test_table_6_shows_each_ablation_and_what_it_compares(joint_inputs):
    table = made("table6", joint_inputs)
    assert "auxiliary" in table.index
    assert "upcycled" not in table.index  # several budgets: no ablation
    row = table.loc["auxiliary"]
    assert row[["batch size", "iterations", "warm-up iterations"]].tolist() == [512, 4000, 200]
    assert row["auxiliary coefficient"] == "0.00100, 1"
    assert row["compares"] == "moe.aux_coef"
    assert list(made("table6", joint_inputs, sweeps=["auxiliary"]).index) == ["auxiliary"]


def test_table_6_refuses_unknown_sweeps_and_a_study_without_ablations(joint_inputs):
    with pytest.raises(UserError, match="no finished run of sweep `auxilliary`"):
        made("table6", joint_inputs, sweeps=["auxilliary"])
    rows = joint_inputs.losses[joint_inputs.losses["sweeps"] == "dense"]
    none = dataclasses.replace(joint_inputs, losses=rows, sweeps={})
    with pytest.raises(UserError, match="no sweep has models of one number of steps alone"):
        made("table6", none)
