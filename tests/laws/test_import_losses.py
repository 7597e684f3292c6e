"""`upcycle import-losses`: made-up tables, a losses.csv of ours, and the paper's own losses by configuration.

The paper's losses (data card: CC BY 4.0) are no part of this project: the environment variable UPCYCLE_LIEW2025 names a
folder that holds their losses.csv.
"""

import hashlib
import os
from pathlib import Path

import pandas as pd
import pytest

from upcycle.cli import main
from upcycle.decisions.advice.measured import find_rivals
from upcycle.errors import UserError
from upcycle.laws.fit import run_fit
from upcycle.laws.tables.importing import import_losses, taken_losses
from upcycle.laws.tables.losses import read_losses, write_losses
from upcycle.study.columns import COLUMNS

REFERENCE = next((Path(__file__).parents[2] / "results" / "reference").glob("default-*")) / "losses.csv"
TABLE = """kind,size,experts,active,parent,seen,final
dense,14.7456,,,,2e9,3.1
up,14.7456,8,2,2e9,5e8,3.0
moe,14.7456,8,2,,1e9,2.95
cont,14.7456,,,2e9,5e8,3.05
"""
MAPPING = "lineage=kind,N1=size*1e6,n_expert=experts,top_k=active,D1=parent,D=seen,loss=final"
SHAPE = {"n_expert", "top_k", "granularity", "shared_expert", "N1", "N2", "N_total"}
GIVEN = SHAPE | {"sweeps", "model", "moe", "lineage", "D", "D1", "D2", "loss"}


def imported(folder: Path, text: str = TABLE, columns: str = MAPPING, *, where: str = "", words: str = "a paper"):
    path = folder / "table.csv"
    path.write_text(text)
    return import_losses(path, columns=columns, where=where, words=words)


def test_a_table_becomes_rows_that_name_their_source_and_leave_the_unknown_empty(tmp_path):
    out = tmp_path / "imported.csv"
    write_losses(imported(tmp_path), out)
    rows = read_losses(out)  # as fits, figures and the report read it
    sha256 = hashlib.sha256(TABLE.encode()).hexdigest()
    assert set(rows["source"]) == {f"table.csv;sha256={sha256};a paper"}
    assert rows["id"].tolist() == [f"imported-{sha256[:10]}-{k:05d}" for k in (1, 3, 2, 4)]
    up = rows.iloc[2]
    n1 = 14_745_600
    assert (up["D1"], up["D"], up["D2"], up["loss"]) == (2_000_000_000, 500_000_000, 500_000_000, 3.0)
    assert (up["N1"], up["N2"], up["N_total"]) == (n1, n1 * 28 // 16, n1 * 100 // 16)  # Equations 5 and 6
    assert rows["sweeps"].tolist() == ["dense", "moe", "upcycled", "continued"]
    assert rows["moe"].tolist() == ["", "8x2", "8x2", ""]
    assert rows[["n_expert", "N2", "D1", "D2"]].iloc[3].tolist() == [1, n1, 2_000_000_000, 500_000_000]
    (rivals,) = find_rivals(rows, {})  # what the advice compares: both begin with one dense model
    assert (rivals.upcycled.measured(5e8), rivals.continued.measured(5e8)) == ((3.0, 1, False), (3.05, 1, False))
    assert set(rows["model"]) == {"14.7M"}
    assert rows[["n_expert", "top_k", "D1", "N2"]].iloc[0].tolist() == [1, 1, 0, n1]
    for column in COLUMNS:
        if column.name not in GIVEN | {"id", "source", "simulated"}:
            empty = rows[column.name] == "" if column.kind == "text" else rows[column.name].isna()
            assert empty.all(), column.name
    write_losses(rows, tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == out.read_bytes()


def test_the_shape_of_experts_makes_their_size(tmp_path):
    """32 quarter-width experts, 8 of them used, and 4 for every token: 9 MLPs, 3 used."""
    text = "kind,size,experts,active,parent,seen,final\nup,14.7456,32,8,2e9,5e8,3.0\n"
    up = imported(tmp_path, text, f"{MAPPING},granularity=4,shared_expert=4").iloc[0]
    assert (up["moe"], up["N2"], up["N_total"]) == ("32x8g4s4", up["N1"] * 40 // 16, up["N1"] * 112 // 16)


def test_our_own_losses_come_back_as_they_were(tmp_path):
    again, rows = import_losses(REFERENCE, columns="", where="", words="ours"), read_losses(REFERENCE)
    both = ["id", "source"]
    key = ["lineage", "N1", "D", "D1", "seed"]
    pd.testing.assert_frame_equal(
        again.drop(columns=both).sort_values(key, ignore_index=True),
        rows.drop(columns=both).sort_values(key, ignore_index=True),
        check_exact=True,
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            MAPPING.replace("lineage=kind", "lineage='sparse'"),
            "row 1: `lineage` is 'sparse', not one of dense, moe, up",
        ),
        (MAPPING.replace("lineage=kind,", ""), "row 1: `lineage` is missing; give it as --columns"),
        (MAPPING.replace("n_expert", "n_experts"), "--columns n_experts: .* did you mean `n_expert`"),
        (MAPPING.replace("N1=size*1e6", "N1=size"), "row 1: `N1` is 14.7456, where a whole number of parameters is"),
        (MAPPING.replace("loss=final", "loss=final-3.1"), "row 1: `loss` is 0, and must be above 0"),
        (MAPPING.replace("D=seen", "steps=seen"), "row 1: `D` is missing, and a loss of lineage dense needs it"),
        (MAPPING.replace("top_k=active", "top_k=active*8"), "row 2: `top_k` is 16, more than its `n_expert` 8"),
        (MAPPING.replace("D1=parent", "D1=seen"), "row 1: `D1` is 2,000,000,000, and 0 by its lineage dense"),
        (MAPPING + ",model='a b'", "'a b' names a model, mixture or sweep"),
        (MAPPING + ",seed=kind", "column `kind` holds words in every row"),
    ],
)
def test_what_cannot_be_a_loss_is_named(tmp_path, columns, message):
    with pytest.raises(UserError, match=message):
        imported(tmp_path, columns=columns)


def test_a_source_must_be_told(tmp_path, capsys):
    with pytest.raises(UserError, match="--source: say in one line where"):
        imported(tmp_path, words=" ")
    assert main(["import-losses", str(tmp_path / "table.csv"), "--source", "x", "--out", str(tmp_path)]) == 2
    assert "name a .csv file" in capsys.readouterr().err


def test_the_table_is_not_overwritten(tmp_path, capsys):
    table = tmp_path / "table.csv"
    table.write_text("loss\n3.0\n")
    assert main(["import-losses", str(table), "--source", "x", "--out", str(table)]) == 2
    assert "is the table that is read" in capsys.readouterr().err
    assert table.read_text() == "loss\n3.0\n"


def test_a_whole_number_may_be_missing_of_imported_rows_alone(tmp_path):
    path = tmp_path / "losses.csv"
    path.write_text(REFERENCE.read_text().replace(",2,32,2,1,1,", ",,32,2,1,1,", 1))
    with pytest.raises(UserError, match="column `n_layer`"):
        read_losses(path)


def test_rows_without_a_mark_get_their_files_and_none_comes_twice():
    rows = taken_losses([REFERENCE])
    sha256 = hashlib.sha256(REFERENCE.read_bytes()).hexdigest()
    assert set(rows["source"]) == {f"losses.csv;sha256={sha256}"}
    with pytest.raises(UserError, match="comes twice"):
        taken_losses([REFERENCE, REFERENCE])


LIEW = Path(os.environ.get("UPCYCLE_LIEW2025", ""))
LIEW_MAPPING = (
    "lineage='up',D1=D1*1e9,D2=D2*1e9,N1=N_dense*1e9,N2=N_active*1e9,N_total=P*N2,"
    "top_k=((16*N_active/N_dense-4)/12+0.5)//1,n_expert=((P*(4+12*top_k)-4)/12+0.5)//1"
)


@pytest.mark.skipif(
    "UPCYCLE_LIEW2025" not in os.environ, reason="UPCYCLE_LIEW2025 names no folder of the paper's losses"
)
def test_equation_11_is_fitted_to_the_papers_losses(tmp_path, capsys):
    """At D2 = 2.31 B: 34 of the paper's 48 points. They allow the exponent of N2 that the paper prints, 0.34."""
    out = tmp_path / "liew.csv"
    words = ["--columns", LIEW_MAPPING, "--source", "Liew et al. 2025, section 4.2: inferred", "--out", str(out)]
    assert main(["import-losses", str(LIEW / "losses.csv"), *words]) == 0
    assert "88 losses" in capsys.readouterr().out
    rows = read_losses(out)
    assert sorted(set(rows["moe"])) == ["16x1", "16x2", "16x4", "32x4", "4x1", "4x2", "8x1", "8x2", "8x4"]
    assert rows["D1"].unique().tolist() == [2_306_867_200]
    exact = rows["N1"] * (4 + 12 * rows["top_k"]) / 16
    assert (abs(rows["N2"] / exact - 1) < 0.01).all()  # the table's N2 has norms and the router too
    fitted = run_fit(
        out,
        law="configuration",
        select={"sweep": "upcycled", "where": "D2 > 2e9 and D2 < 3e9"},
        out=tmp_path / "fit.json",
    )
    assert fitted["n"] == 34
    low, high = fitted["intervals"]["beta2"]
    assert 0.1 < low < 0.34 < high < 0.7
    assert fitted["rms"] < 0.05
