"""losses.csv: from run folders to the table, to disk and back, and selections of it."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from upcycle.errors import UserError
from upcycle.laws.fit import run_fit
from upcycle.laws.forms import LAWS
from upcycle.laws.tables.losses import collect_losses, law_columns, read_losses, select_losses, write_losses
from upcycle.laws.tables.mixed_kernels import check_one_set_of_kernels
from upcycle.study.columns import COLUMNS, columns_markdown
from upcycle.study.counting import count_parameters
from upcycle.study.shape import ModelSpec, MoESpec
from upcycle.study.spec import DataSpec, OptimSpec, RunSpec, ScheduleSpec

MODEL = ModelSpec(n_layer=2, d_model=64, n_head=2, vocab_size=1024, context=256)
MOE = MoESpec(n_expert=8, top_k=2)
NATIVE = dict.fromkeys(("attention", "experts", "rms_norm", "cross_entropy", "router", "layers"), "native")
EXECUTION = {"device": "cpu", "kernels": {**NATIVE, "torch": "2.13.0", "native": "ab12"}}
COMPOSED = {"attention": "sdpa", "experts": "loop", "router": "torch", "layers": "composed", "torch": "2.13.0"}
TRUTH = {"A": 400.0, "alpha1": 0.18, "alpha2": 0.2, "alpha3": 0.008, "E": 1.4}


def run_spec(
    *, end_step: int, dense_steps: int = 0, moe: MoESpec | None = None, seed: int = 0, lr: float = 8e-3
) -> RunSpec:
    """A finished model: dense, MoE from scratch, or upcycled or continued from a dense run of `dense_steps`."""
    origin = "upcycle:copy" if moe else "continued"
    return RunSpec(
        model=MODEL,
        moe=moe,
        data=DataSpec(dataset="english", vocab_size=1024),
        optim=OptimSpec(lr=lr, batch=16),
        schedule=ScheduleSpec(warmup_steps=10),
        seed=seed,
        origin=origin if dense_steps else "scratch",
        dense_parent="decay-dense-parent" if dense_steps else None,
        dense_tokens=dense_steps * 16 * 256,
        role="decay",
        start_step=end_step - end_step // 10,
        end_step=end_step,
        parent="trunk",
    )


def widened(run: RunSpec) -> RunSpec:
    """The same at twice the width."""
    return run.model_copy(update={"model": MODEL.model_copy(update={"d_model": 128})})


def write_run(folder: Path, run: RunSpec, **metrics: object) -> Path:
    """A run folder as training leaves it, as far as the losses read it."""
    path = folder / run.id
    path.mkdir(parents=True)
    content = {"id": run.id, "loss": 3.25, "loss_se": 0.011, "wall_seconds": 12.5, "tokens_per_second": 31234.5}
    (path / "spec.json").write_text(json.dumps({**run.model_dump(mode="json"), "id": run.id}))
    (path / "metrics.json").write_text(json.dumps(content | {"execution": EXECUTION} | metrics))
    return path


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """losses.csv of a dense model and a 5 x 5 upcycled grid that follows Equation 8."""
    runs = [run_spec(end_step=100)]
    runs += [
        run_spec(end_step=d2, dense_steps=d1, moe=MOE)
        for d1 in (100, 200, 400, 800, 1600)
        for d2 in (100, 200, 400, 800, 1600)
    ]
    folders = []
    for run in runs:
        loss = 4.0
        if run.moe:
            loss = float(LAWS["multiplicative"].predict(TRUTH, {"D1": run.dense_tokens, "D2": run.tokens})[0])
        folders.append(write_run(tmp_path / "runs", run, loss=loss))
    membership = {run.id: ["upcycled", "all"] if run.moe else ["dense"] for run in runs}
    names = {run.id: ("tiny", "8x2" if run.moe else "") for run in runs}
    write_losses(collect_losses(folders, membership, names), tmp_path / "losses.csv")
    return tmp_path / "losses.csv"


def test_an_upcycled_runs_row_says_everything(tmp_path: Path) -> None:
    run = run_spec(end_step=200, dense_steps=100, moe=MOE, seed=3)
    row = collect_losses([write_run(tmp_path, run)], {run.id: ["b", "a"]}, {run.id: ("tiny", "8x2")}).iloc[0].to_dict()
    assert row == {
        "id": run.id, "sweeps": "a;b", "model": "tiny", "moe": "8x2", "lineage": "up", "role": "decay",
        "n_layer": 2, "d_model": 64, "n_head": 2, "n_expert": 8, "top_k": 2, "gate": "topk_softmax", "aux_coef": 1e-3,
        "granularity": 1, "shared_expert": 0,
        "N1": 16 * 2 * 64**2, "N2": 28 * 2 * 64**2, "N_total": 100 * 2 * 64**2,
        "N_dense_exact": 16 * 2 * 64**2 + 5 * 64,
        "D": 200 * 16 * 256, "D1": 100 * 16 * 256, "D2": 200 * 16 * 256,
        "flops_6nd": 6.0 * count_parameters(MODEL, MOE).active * 200 * 16 * 256,
        "steps": 200, "batch": 16, "context": 256, "dataset": "english", "data_version": "1", "data_start": 0.0,
        "data_stop": 1.0, "tokenizer": "bpe", "tokenizer_vocab": 1024, "vocab_size": 1024, "lr": 8e-3,
        "schedule": "wsd", "warmup_steps": 10, "decay_fraction": 0.1, "floor": 0.1, "dtype": "float32",
        "method": "copy", "settings": "", "seed": 3, "data_seed": 0, "dense_parent": "decay-dense-parent",
        "loss": 3.25, "loss_se": 0.011, "wall_seconds": 12.5, "tokens_per_second": 31234.5, "device": "cpu",
        "kernels": "layers=native;native=ab12;torch=2.13.0", "simulated": 0, "source": "",
    }  # fmt: skip


def test_a_dense_run_has_no_second_stage(tmp_path: Path) -> None:
    run = run_spec(end_step=100)
    row = collect_losses([write_run(tmp_path, run)], {}, {}).iloc[0]
    assert (row["lineage"], row["D"], row["D1"], row["D2"]) == ("dense", 100 * 16 * 256, 0, 0)
    assert (row["n_expert"], row["top_k"], row["gate"], row["method"], row["sweeps"]) == (1, 1, "", "scratch", "")
    assert row["N1"] == row["N2"] == row["N_total"]


def test_equal_losses_are_equal_bytes_whatever_the_order_of_runs(tmp_path: Path) -> None:
    runs = [run_spec(end_step=s) for s in (100, 200, 50)] + [run_spec(end_step=100, dense_steps=100, moe=MOE)]
    folders = [write_run(tmp_path / "runs", run, loss=3 + 0.1 / 3) for run in runs]
    write_losses(collect_losses(folders, {}, {}), tmp_path / "one.csv")
    write_losses(collect_losses(folders[::-1], {}, {}), tmp_path / "two.csv")
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()


def test_rows_are_in_an_order_that_their_content_fixes(tmp_path: Path) -> None:
    """Lineage, size, mixture, D1, D, then the other settings, then seeds; never the id before one of these."""
    sparse = MoESpec(n_expert=16, top_k=2)
    expected = [
        run_spec(end_step=100),
        run_spec(end_step=200, lr=1e-3),
        run_spec(end_step=200, lr=1e-3, seed=5),
        *(run_spec(end_step=200, lr=4e-3, seed=seed) for seed in (0, 2, 10)),  # not the order of ids, s10 before s2
        run_spec(end_step=1000),
        widened(run_spec(end_step=50)),
        run_spec(end_step=50, moe=MOE),
        run_spec(end_step=40, moe=MoESpec(n_expert=8, top_k=4)),
        run_spec(end_step=30, moe=sparse),
        widened(run_spec(end_step=20, moe=MOE)),
        run_spec(end_step=400, dense_steps=100, moe=MOE),
        run_spec(end_step=100, dense_steps=200, moe=MOE),
        run_spec(end_step=100, dense_steps=200, moe=MoESpec(n_expert=8, top_k=2, aux_coef=0.1)),
        run_spec(end_step=20, dense_steps=100, moe=sparse),
    ]
    assert [run.lineage for run in expected] == ["dense"] * 8 + ["moe"] * 4 + ["up"] * 4
    folders = {run.id: write_run(tmp_path, run) for run in expected}
    for ids in (sorted(folders), sorted(folders, reverse=True)):
        assert list(collect_losses([folders[i] for i in ids], {}, {})["id"]) == [run.id for run in expected]


def test_ablations_are_told_apart(tmp_path: Path) -> None:
    """Three learning rates: no row equals another in every column beside the id."""
    runs = [run_spec(end_step=100, lr=lr) for lr in (1e-3, 2e-3, 4e-3)]
    table = collect_losses([write_run(tmp_path, run) for run in runs], {}, {})
    assert not table.drop(columns="id").duplicated().any()
    assert list(table["lr"]) == [1e-3, 2e-3, 4e-3]


def test_kernels_are_those_that_a_run_used(tmp_path: Path) -> None:
    """Whole layers stand for their ops; a dense model has neither experts nor a router."""
    composed = {"execution": {"device": "cpu", "kernels": COMPOSED}}
    folders = [
        write_run(tmp_path, run_spec(end_step=100)),
        write_run(tmp_path, run_spec(end_step=200), **composed),
        write_run(tmp_path, run_spec(end_step=100, moe=MOE), **composed),
    ]
    assert list(collect_losses(folders, {}, {})["kernels"]) == [
        "layers=native;native=ab12;torch=2.13.0",
        "attention=sdpa;layers=composed;torch=2.13.0",
        "attention=sdpa;experts=loop;layers=composed;router=torch;torch=2.13.0",
    ]


@pytest.mark.parametrize("execution", [{"device": "cpu"}, {"device": "cpu", "kernels": "native"}, None])
def test_metrics_without_kernels_are_damaged(tmp_path: Path, execution: object) -> None:
    folder = write_run(tmp_path, run_spec(end_step=100), execution=execution)
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        collect_losses([folder], {}, {})


def test_inputs_of_the_unified_law_say_where_tokens_were_seen(tmp_path: Path) -> None:
    """Section E.3: (T1, T2) is (D, 0) for dense training, (0, D) for a MoE from scratch, (D1, D2) for upcycling.

    Ours: (D1 + D2, 0) for a dense model that is trained on.
    """
    step = 16 * 256
    runs = [run_spec(end_step=100), run_spec(end_step=200, moe=MOE), run_spec(end_step=400, dense_steps=50, moe=MOE)]
    runs.append(run_spec(end_step=300, dense_steps=50))
    rows = collect_losses([write_run(tmp_path, run) for run in runs], {}, {})
    columns = law_columns(rows, ["T1", "T2", "N", "P", "lineage"])
    assert columns["T1"].tolist() == [100 * step, 0, 50 * step, 350 * step]
    assert columns["T2"].tolist() == [0, 200 * step, 400 * step, 0]
    assert columns["N"].tolist() == [16 * 2 * 64**2] * 4
    assert columns["P"].tolist() == [1.0, 100 / 28, 100 / 28, 1.0]
    assert columns["lineage"].tolist() == ["dense", "moe", "up", "cont"]
    assert rows["D2"].tolist() == [0, 0, 400 * step, 300 * step]


def test_the_table_comes_back_from_disk_exactly(grid: Path, tmp_path: Path) -> None:
    table = read_losses(grid)
    write_losses(table, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == grid.read_bytes()
    pd.testing.assert_frame_equal(read_losses(tmp_path / "again.csv"), table, check_exact=True)
    assert list(table.columns) == [column.name for column in COLUMNS]


def test_every_column_is_documented_once() -> None:
    text = columns_markdown()
    for column in COLUMNS:
        assert text.count(f"| `{column.name}` |") == 1
        assert column.meaning


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", None, "metrics.json: No such file"),
        ("spec.json", None, "spec.json: No such file"),
        ("metrics.json", '{"loss": 3.2', "metrics.json is damaged"),
        ("metrics.json", "[1]", "not a JSON object"),
        ("spec.json", '{"model": 1}', "spec.json is damaged"),
    ],
)
def test_a_missing_or_damaged_file_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    folder = write_run(tmp_path, run_spec(end_step=100))
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=message):
        collect_losses([folder], {}, {})


@pytest.mark.parametrize("loss", [None, float("nan"), -1.0, "3.2"])
def test_a_finished_run_without_a_proper_loss_is_named(tmp_path: Path, loss: object) -> None:
    folder = write_run(tmp_path, run_spec(end_step=100), loss=loss)
    with pytest.raises(UserError, match=f"{folder.name}.*loss"):
        collect_losses([folder], {}, {})


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path, run_spec(end_step=100))
    folder = folder.rename(tmp_path / "decay-dense-other")
    with pytest.raises(UserError, match="name different runs"):
        collect_losses([folder], {}, {})


def test_a_table_with_other_columns_is_refused(grid: Path) -> None:
    table = pd.read_csv(grid)
    table.rename(columns={"D2": "D3"}).to_csv(grid, index=False)
    with pytest.raises(UserError, match=r"missing columns \['D2'\], unknown columns \['D3'\]"):
        read_losses(grid)


def test_a_cell_of_the_wrong_type_names_its_column(grid: Path) -> None:
    grid.write_text(grid.read_text().replace("decay,2,64", "decay,two,64"))
    with pytest.raises(UserError, match=r"column `n_layer`.*two"):
        read_losses(grid)


def test_a_selection_is_by_sweep_and_expression(grid: Path) -> None:
    table = read_losses(grid)
    assert len(select_losses(table)) == 26
    assert len(select_losses(table, sweep="upcycled")) == 25
    assert len(select_losses(table, sweep=["dense", "all"])) == 26
    assert len(select_losses(table, sweep="upcycled", where="D1 > 5e5 and seed == 0")) == 20
    assert list(select_losses(table, where="lineage == 'dense'")["D1"]) == [0]


@pytest.mark.parametrize("where", ["D3 > 1", "D1 >", "D1", "D1 + 1", "lineage > 3", "import os"])
def test_a_bad_expression_is_quoted(grid: Path, where: str) -> None:
    with pytest.raises(UserError, match=rf"^where: `{re.escape(where)}`"):
        select_losses(read_losses(grid), where=where)


def test_an_unknown_sweep_and_an_empty_selection_are_named(grid: Path) -> None:
    with pytest.raises(UserError, match="did you mean `upcycled`"):
        select_losses(read_losses(grid), sweep="upcycle")
    with pytest.raises(UserError, match="no finished run in sweep dense where D1 > 0"):
        select_losses(read_losses(grid), sweep="dense", where="D1 > 0")


def test_run_fit_goes_from_the_table_to_a_file(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "fits" / "law.json"
    content = run_fit(grid, law="multiplicative", select={"sweep": ["upcycled"], "where": "D1 > 0"}, fixed={}, out=out)
    assert json.loads(out.read_text()) == content
    assert content["parameters"]["alpha3"]["value"] == pytest.approx(TRUTH["alpha3"], rel=1e-5)
    assert content["selection"] == "sweep upcycled where D1 > 0"
    assert content["n"] == len(content["ids"]) == 25
    assert content["simulated"] is False
    assert content["delta"] == 1e-3


def test_run_fit_by_groups(grid: Path, tmp_path: Path) -> None:
    content = run_fit(
        grid, law="power", select={"sweep": "upcycled"}, by="D1", shared=["E"], out=tmp_path / "power.json"
    )
    assert (content["by"], content["shared"], len(content["groups"])) == ("D1", ["E"], 5)
    gamma = content["relations"]["exponent_vs_d1"]["parameters"]["gamma"]["value"]
    assert gamma == pytest.approx(TRUTH["alpha3"], rel=1e-3)
    assert content["parameters"]["E"]["value"] == pytest.approx(TRUTH["E"], rel=1e-4)


def test_run_fit_refuses_before_it_writes(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "fit.json"
    with pytest.raises(UserError, match="did you mean `additive`"):
        run_fit(grid, law="aditive", out=out)
    with pytest.raises(UserError, match="without `by`"):
        run_fit(grid, law="power", shared=["E"], out=out)
    with pytest.raises(UserError, match="fit that, with `by: D1`"):
        run_fit(grid, law="exponent_vs_d1", out=out)
    with pytest.raises(UserError, match="cannot take D1 = 0"):
        run_fit(grid, law="multiplicative", out=out)
    assert not out.exists()


def test_a_comparison_of_mixed_kernels_is_refused(grid: Path) -> None:
    """With the kernels and the runs to train again; runs of one set of kernels pass."""
    table = read_losses(grid)
    table = table[table["lineage"] == "up"]
    check_one_set_of_kernels(table, "figures.methods")
    other = table["D1"] == table["D1"].max()
    table = table.assign(kernels=table["kernels"].where(~other, "attention=sdpa;layers=composed;torch=2.13.0"))
    first = table.loc[other, "id"].iloc[0]
    message = f"^figures.methods: .*layers: composed in 5, native in 20\\).*{first} --fresh` and 4 more$"
    with pytest.raises(UserError, match=message):
        check_one_set_of_kernels(table, "figures.methods")


@pytest.mark.slow
def test_a_fit_to_losses_of_mixed_kernels_warns(grid: Path, tmp_path: Path) -> None:
    """In the fit's file; losses of one kind give none, and neither do kernels that only some of the models use."""
    select_up = {"where": "D2 > 0"}
    out = tmp_path / "fit.json"
    assert run_fit(grid, law="power", select=select_up, out=out)["warnings"] == {}
    table = read_losses(grid)
    other = (table["D1"] == table["D1"].max()) & (table["lineage"] == "up")
    write_losses(
        table.assign(kernels=table["kernels"].where(~other, "attention=sdpa;layers=composed;torch=2.13.0")), grid
    )
    warning = run_fit(grid, law="power", select=select_up, out=out)["warnings"]["mixed kernels"]
    assert "layers: composed in 5, native in 20" in warning
    assert "0.011 nats" in warning
    assert "'layers=native' in kernels" in warning
    assert "torch" not in warning
    assert json.loads(out.read_text())["warnings"]["mixed kernels"] == warning
    only = run_fit(grid, law="power", select={"where": "D2 > 0 and 'layers=native' in kernels"}, out=out)
    assert (only["n"], only["warnings"]) == (20, {})


def test_a_fit_to_simulated_losses_says_so(grid: Path, tmp_path: Path) -> None:
    write_losses(read_losses(grid).assign(simulated=1), grid)
    assert run_fit(grid, law="power", select={"where": "D2 > 0"}, out=tmp_path / "fit.json")["simulated"] is True
