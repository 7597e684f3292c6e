"""A study of losses from files: fits, figures, tables and the report are made, and nothing is trained."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from checkouts import REPOSITORY, SNAKEMAKE, Checkout

from upcycle.cli import main
from upcycle.errors import UserError
from upcycle.fingerprint import PACKAGE_ROOT
from upcycle.laws.result import read_fit
from upcycle.laws.tables.losses import read_losses
from upcycle.study.catalogue import catalogue
from upcycle.study.check import OF_RUNS
from upcycle.workflow.invocation import read_workflow

REFERENCE = next((REPOSITORY / "results" / "reference").glob("default-*")) / "losses.csv"
STUDY = """study: imported
title: Losses of somebody else
losses_from: somebody.csv
fits:
  power: {law: power_in_tokens, sweep: upcycled, where: "D1 == 491520"}
"""
WITH_LOSSES_ALONE = {"methods", "methods_compared"}
"""Figures and tables that read runs of ours where there are some, and do without."""


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


@pytest.mark.parametrize("name", OF_RUNS)
def test_what_reads_folders_of_runs_is_refused(folder, name):
    kind = f"{catalogue()[name].kind}s"
    (folder / "config" / "imported.yaml").write_text(f"{STUDY}{kind}: {{{name}: {{}}}}\n")
    with pytest.raises(UserError, match=f"{kind}.{name}: it reads folders of runs"):
        read_workflow("imported", folder)


def test_what_reads_folders_of_runs_is_known_from_the_source():
    """`OF_RUNS` names the figures and tables whose code asks for a run's files or specification, and no other."""
    asks = re.compile(r"inputs\.(record|spec|chain|curve)\(")
    files = {path: ast.parse(path.read_text()).body for path in (PACKAGE_ROOT / "paper").glob("*.py")}
    texts = {
        path: {node.name: ast.unparse(node) for node in body if isinstance(node, ast.FunctionDef)}
        for path, body in files.items()
    }
    public = {name: path for path in texts for name in texts[path] if not name.startswith("_")}
    found = []
    for name, item in catalogue().items():
        used, left = set(), [(item.path, item.function)]
        while left:
            path, function = left.pop()
            used.add((path, function))
            known = {**public, **dict.fromkeys(texts[path], path)}  # a file's own functions come first
            called = set(re.findall(r"(?<!\.)\b(\w+)\(", texts[path][function])) & set(known)
            left += {(known[other], other) for other in called} - used
        if any(asks.search(texts[path][function]) for path, function in used):
            found.append(name)
    assert set(found) - WITH_LOSSES_ALONE == set(OF_RUNS)
