"""The audit of the paper's own losses of section 4.2: on losses of a known law, and on the table itself.

The paper's losses are no part of this project: the environment variable UPCYCLE_LIEW2025 names a folder of them.
"""

import os
from pathlib import Path

import pandas as pd
import pytest

from upcycle.audit.audit import OF_LOSSES, collect_items, write
from upcycle.audit.items import sparsity
from upcycle.audit.verdict import Evidence
from upcycle.cli import main
from upcycle.errors import UserError

LIEW = Path(os.environ.get("UPCYCLE_LIEW2025", ""))
MAPPING = (
    "lineage='up',D1=D1*1e9,D2=D2*1e9,N1=N_dense*1e9,N2=N_active*1e9,N_total=P*N2,"
    "top_k=((16*N_active/N_dense-4)/12+0.5)//1,n_expert=((P*(4+12*top_k)-4)/12+0.5)//1"
)


def imported(folder, table, columns):
    table.to_csv(folder / "table.csv", index=False)
    out = folder / "losses.csv"
    words = ["--columns", columns, "--source", "made up", "--out", str(out)]
    assert main(["import-losses", str(folder / "table.csv"), *words]) == 0
    return out


def grid(loss, budgets=(2.0e9,), sizes=(15e6, 44e6, 98e6, 233e6)):
    """Losses of every mixture of section 4.2 by a law of P and N2, at these D2."""
    rows = []
    for n1 in sizes:
        for n_expert in (4, 8, 16, 32):
            for top_k in (1, 2, 4):
                n2, total = n1 * (4 + 12 * top_k) / 16, n1 * (4 + 12 * n_expert) / 16
                for d2 in budgets:
                    row = {"N1": n1, "n_expert": n_expert, "top_k": top_k, "D1": 2.0e9, "D2": d2}
                    rows.append(row | {"loss": loss(total / n2, n2, d2, top_k, n_expert)})
    return pd.DataFrame(rows)


def test_a_known_law_is_found_and_predicts_the_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(sparsity, "_DRAWS", 20)
    table = grid(lambda p, n2, d2, *_: 0.5 * p**-1.87 + 90 * n2**-0.34 + 2.2)
    rows = sparsity.read_sparsity(imported(tmp_path, table, "lineage='up'"))
    items = {item.label: item for item in sparsity.sparsity_items(Evidence.read(draws=10), rows)}
    found = items["Equation 11, exponents, D2 = 2B, all"]
    assert found.values["beta1"] == pytest.approx(1.87, rel=1e-3)
    assert found.values["beta2"] == pytest.approx(0.34, rel=1e-3)
    assert found.values["RMS with the printed exponents"] < 1e-5
    assert found.verdict == "recomputed from a part of the losses"
    assert "48 of 48 points" in found.source
    assert items["Section 4.2, without noticeable trade-offs, D2 = 2B, all"].values["additive"] == pytest.approx(
        0, abs=1e-3
    )
    assert items["Equation 11 at 0.2B from the smaller sizes, D2 = 2B, without top-1"].values["RMS"] < 1e-3
    assert items["Section 4.2, top-1: losses against those of 4 experts, same size and D2"].values["rises"] == 0


def test_losses_that_rise_with_the_experts_and_exponents_of_d2(tmp_path):
    table = grid(lambda p, n2, d2, k, e: (3 + 0.01 * (k == 1) * e) * (d2 / 1e9) ** -(0.02 * k), (1e9, 2e9, 4e9))
    rows = sparsity.read_sparsity(imported(tmp_path, table, "lineage='up'"))
    top_1, top_2, *_ = list(sparsity._top_k(rows))
    assert (top_1.values["rises"], top_1.values["of"]) == (36, 36)
    assert top_2.values["rises"] == 0
    slopes = sparsity._exponents_of_d2(rows).values
    assert slopes["8x1"] == pytest.approx(0.02)
    assert slopes["32x4"] == pytest.approx(0.08)


def test_another_table_is_refused(tmp_path, capsys):
    table = grid(lambda p, *_: 3 + p, sizes=(15e6, 44e6))
    path = imported(tmp_path, table, "lineage='up'")
    with pytest.raises(UserError, match="no sparsity study"):
        sparsity.read_sparsity(path)
    assert main(["audit", "--losses", str(path)]) == 2
    assert "upcycle import-losses" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(
    "UPCYCLE_LIEW2025" not in os.environ, reason="UPCYCLE_LIEW2025 names no folder of the paper's losses"
)
def test_the_papers_losses(tmp_path, monkeypatch):
    """What docs/audit-losses.md says of them; the page itself has intervals of more draws."""
    monkeypatch.setattr(sparsity, "_DRAWS", 20)
    path = imported(tmp_path, pd.read_csv(LIEW / "losses.csv"), MAPPING)
    topics = collect_items(Evidence.read(draws=10), path)
    write(topics, tmp_path)
    items = {item.label: item for item in topics[OF_LOSSES]}
    rises = {
        k: items[f"Section 4.2, top-{k}: losses against those of {4 * max(1, k // 2)} experts, same size and D2"]
        for k in (1, 2, 4)
    }
    assert [(each.values["rises"], each.values["of"]) for each in rises.values()] == [(22, 22), (5, 21), (0, 14)]
    for budget, points in {"2.31B": 34, "1.15B": 31, "4.61B": 23}.items():
        found = items[f"Equation 11, exponents, D2 = {budget}, all"]
        assert f"{points} of 48 points" in found.source
        assert "not identifiable" in found.remark
        assert found.values["RMS with the printed exponents"] < 1.25 * found.values["RMS"]
    printed = (Path(__file__).parents[2] / "docs" / "audit-losses.md").read_text()
    assert (tmp_path / "audit-losses.md").read_text().split("| where")[0] == printed.split("| where")[0]
