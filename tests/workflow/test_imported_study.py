"""A study of losses from files: fits, figures, tables and the report are made, and nothing is trained."""

import ast
import dataclasses
import re
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from checkouts import REPOSITORY, SNAKEMAKE, Checkout

from upcycle.cli import main
from upcycle.errors import UserError
from upcycle.laws.result import read_fit
from upcycle.laws.tables.losses import read_losses
from upcycle.manifest import json_bytes, sealed
from upcycle.paper.inputs import Inputs
from upcycle.paper.tables_forecasts import forecasts
from upcycle.study.catalogue import catalogue
from upcycle.study.check import OF_RUNS
from upcycle.workflow.invocation import read_workflow
from upcycle.workflow.paths import forecasts_of

REFERENCE = next((REPOSITORY / "results" / "reference").glob("default-*")) / "losses.csv"
STUDY = """study: imported
title: Losses of somebody else
losses_from: somebody.csv
fits:
  power: {law: power_in_tokens, sweep: upcycled, where: "D1 == 491520"}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the study and the losses that it takes."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "imported.yaml").write_text(STUDY)
    monkeypatch.chdir(tmp_path)
    assert main(["import-losses", str(REFERENCE), "--source", "a friend", "--out", "somebody.csv"]) == 0
    return tmp_path


def snakemake(folder: Path, *more: str) -> str:
    words = ("--snakefile", REPOSITORY / "Snakefile", "--directory", folder, "--config", "study=imported", *more)
    environment = Checkout(REPOSITORY).environment()
    done = subprocess.run([SNAKEMAKE, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.workflow
@pytest.mark.slow
def test_imported_losses_become_a_report_without_a_run(folder):
    snakemake(folder)
    out = folder / "results" / "imported"
    assert not (folder / "results" / "runs").exists()
    rows = read_losses(out / "losses.csv")
    assert rows["source"].str.endswith(";a friend").all()
    assert read_fit(out / "fits" / "power.json").n == 5
    page = (out / "report.html").read_text()
    assert "IMPORTED LOSSES" in page
    assert rows["source"].iloc[0] in page
    assert (out / "summary.txt").read_text().startswith("IMPORTED LOSSES. ")
    assert "Nothing to be done" in snakemake(folder, "-n")
    table = folder / "somebody.csv"
    table.write_text(table.read_text().replace("a friend", "a colleague"))
    assert re.search(r"losses +1\n", snakemake(folder, "-n"))  # the file has other content: its rows are taken again


def test_nothing_is_planned_and_what_would_be_ignored_is_refused(folder, capsys):
    assert dict(read_workflow("imported", folder).plan.runs) == {}
    assert main(["plan", "--study", "imported"]) == 0
    assert "losses are from somebody.csv, and no run is planned" in capsys.readouterr().out
    assert main(["rehearse", "--study", "imported"]) == 2
    assert "nothing that could be rehearsed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (STUDY + "context: 64\n", "`context` would have no effect: with `losses_from` nothing is trained"),
        (STUDY.replace("losses_from", "losses_form"), "unknown key `losses_form`; did you mean `losses_from`"),
        (STUDY.replace("somebody", "nobody"), r"losses_from: nobody\.csv: No such file"),
        (STUDY.replace("somebody.csv", "config/imported.yaml"), "is no losses.csv"),
        (
            STUDY.replace("upcycled", "upcycle"),
            "no row of `losses_from` is of sweep `upcycle`; did you mean `upcycled`",
        ),
        (
            STUDY + "figures: {figure4: {sweep: dense}}\n",
            "figures.figure4.sweep: the study has no upcycled sweep `dense`",
        ),
        (STUDY + "tables: {table1: {sweep: upcycled}, laws: {model: 1B}}\n", "tables.laws"),
    ],
)
def test_a_wrong_study_of_losses_is_refused_before_anything_starts(folder, text, message):
    (folder / "config" / "imported.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_workflow("imported", folder)


def written_forecast(path: Path, **made_of: Any) -> bytes:
    """A sealed forecast of the study's first loss from its second."""
    rows = read_losses(Path("somebody.csv"))
    fitted, predicted = rows["id"].iloc[1], rows["id"].iloc[0]
    content = {"made_of": {"fitted": {fitted: float(rows["loss"].iloc[1])}, "repeated": {}, "predicted": [predicted]}}
    content["made_of"] |= made_of
    content |= {"written": "2026-11-30T12:00:00+00:00", "made_of_sha256": "0" * 64}
    content["predictions"] = {
        "additive": [{"id": predicted, "loss": float(rows["loss"].iloc[0]) + 0.01, "low": 0.0, "high": 9.0}]
    }
    path.write_bytes(json_bytes(sealed(content)))
    return path.read_bytes()


def scored(folder: Path) -> pd.DataFrame:
    flow = read_workflow("imported", folder)
    assert flow.products["tables/forecasts"].files == ("larger.json",)
    losses = dataclasses.replace(
        Inputs(read_losses(Path("somebody.csv")), {}, Path()), forecast_files=forecasts_of(flow.study, flow.out)
    )
    return forecasts(losses)


def test_forecasts_of_another_study_are_checked_and_scored(folder):
    (folder / "config" / "imported.yaml").write_text(
        f"{STUDY}forecasts_from: larger.json\ntables: {{forecasts: {{}}}}\n"
    )
    with pytest.raises(UserError, match=r"forecasts_from: larger\.json: no such file"):
        read_workflow("imported", folder)
    written = written_forecast(folder / "larger.json")
    assert scored(folder).loc["additive", ["runs", "held by 95 %"]].tolist() == [1, 1]
    assert scored(folder).loc["additive", "RMS (nats)"] == pytest.approx(0.01)
    (folder / "larger.json").write_bytes(written.replace(b"2026", b"2025"))
    with pytest.raises(UserError, match=r"forecasts_from: larger\.json: altered since"):
        read_workflow("imported", folder)
    written_forecast(folder / "larger.json", fitted={read_losses(Path("somebody.csv"))["id"].iloc[1]: 1.0})
    with pytest.raises(UserError, match=r"larger\.json: made from a loss of 1\.0 of run imported-"):
        scored(folder)
    written_forecast(folder / "larger.json", predicted=["nobody"])
    with pytest.raises(UserError, match=r"larger\.json: losses\.csv has no run nobody"):
        scored(folder)


@pytest.mark.parametrize("name", OF_RUNS)
def test_what_reads_folders_of_runs_is_refused(folder, name):
    kind = f"{catalogue()[name].kind}s"
    (folder / "config" / "imported.yaml").write_text(f"{STUDY}{kind}: {{{name}: {{}}}}\n")
    with pytest.raises(UserError, match=f"{kind}.{name}: it reads folders of runs"):
        read_workflow("imported", folder)


def reads_runs(path: Path, function: str, seen: set[tuple[Path, str]]) -> bool:
    """Whether a function of a module, or one of `upcycle.paper` that it calls, asks for a run's files."""
    if (path, function) in seen:
        return False
    seen.add((path, function))
    nodes = ast.parse(path.read_text()).body
    texts = {node.name: ast.unparse(node) for node in nodes if isinstance(node, ast.FunctionDef)}
    if function not in texts:
        return False
    places = dict.fromkeys(texts, path)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("upcycle.paper."):
            module = path.with_name(f"{str(node.module).rpartition('.')[2]}.py")
            places |= {alias.name: module for alias in node.names}
    if re.search(r"inputs\.(record|spec|chain|curve)\(", texts[function]):
        return True
    called = [name for name in places if re.search(rf"\b{name}\(", texts[function])]
    return any(reads_runs(places[name], name, seen) for name in called)


def test_what_reads_folders_of_runs_is_known_from_the_source():
    """`OF_RUNS` names the figures and tables whose code asks for a run's files or specification, and no other."""
    found = [name for name, item in catalogue().items() if reads_runs(item.path, item.function, set())]
    assert sorted(found) == sorted(OF_RUNS)
