"""A second study beside finished default results: shared runs and tokens, and nobody else's products touched."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from checkouts import REPOSITORY, SNAKEMAKE, make_checkout

from upcycle.errors import UserError
from upcycle.study.check import find_study
from upcycle.workflow.invocation import PLAN_VARIABLE, read_workflow

SHARED = ("runs", "tokens", "logs", ".plans")
SECOND = REPOSITORY / "tests" / "workflow" / "second.yaml"


def products(results: Path) -> dict[str, bytes]:
    """The default study's products and records, byte by byte."""
    return {
        str(path.relative_to(results)): path.read_bytes()
        for path in results.rglob("*")
        if path.is_file() and path.relative_to(results).parts[0] not in (*SHARED, "second", "verified.json")
    }


def add_second(root: Path) -> None:
    (root / "config").mkdir(exist_ok=True)
    shutil.copy(SECOND, root / "config" / "second.yaml")


@pytest.mark.workflow
def test_a_second_study_runs_to_its_report_and_leaves_the_default_as_it_was(checkout):
    results = checkout.root / "results"
    before = products(results)
    add_second(checkout.root)
    shared = {path.parent.name: path.read_bytes() for path in (results / "runs").glob("*/metrics.json")}
    checkout.run("--config", "study=second")
    for name in ("losses.csv", "evaluations.csv", "fits/multiplicative.json", "fits/by_tokens.json", "report.html"):
        assert (results / "second" / name).stat().st_size > 0, name
    assert "Ablations of the test study" in (results / "second/report.html").read_text()
    rows = (results / "second/losses.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 + 2 + 8 + 1
    assert products(results) == before
    assert {run: (results / "runs" / run / "metrics.json").read_bytes() for run in shared} == shared
    assert checkout.jobs() == {}
    assert checkout.jobs("--config", "study=second") == {}


@pytest.mark.workflow
@pytest.mark.slow
def test_a_study_runs_in_another_folder_and_from_a_path_with_spaces(tmp_path):
    """The configs stay in the checkout, texts and results are in the folder that --directory names."""
    checkout = make_checkout(tmp_path / "a check out")
    add_second(checkout.root)
    folder = tmp_path / "results of mine"
    folder.mkdir()
    for text in checkout.root.glob("*.jsonl"):
        text.rename(folder / text.name)
    words = ("--snakefile", "a check out/Snakefile", "--directory", "results of mine", "--config", "study=second")

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SNAKEMAKE, *words], cwd=tmp_path, env=checkout.environment(), capture_output=True, text=True, check=False
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "results/second/report.html").stat().st_size > 0
    assert not (checkout.root / "results").exists()
    assert "Nothing to be done" in run().stderr


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("mine", "study: yours", r"mine\.yaml: `study: yours`, but its file name makes it study `mine`"),
        ("runs", "study: runs", "study `runs`: results/runs is a folder of the default study"),
        ("mnie", None, r"no study `mnie` .*did you mean `mine`\?"),
        ("default", "study: test", r"config\.yaml: `study: test`, but its file name makes it study `default`"),
    ],
)
def test_a_studys_name_is_its_files_name(tmp_path, name, text, message):
    add_second(tmp_path)
    (tmp_path / "config" / "mine.yaml").write_text("")
    if text is not None:
        path = tmp_path / ("config.yaml" if name == "default" else f"config/{name}.yaml")
        path.write_text(SECOND.read_text().replace("study: second", text))
    with pytest.raises(UserError, match=message):
        find_study(name, tmp_path)


def test_jobs_take_study_and_folder_from_the_frozen_plan(tmp_path, monkeypatch):
    """Jobs name no study; one that names another than the plan's is refused."""
    from upcycle.study.frozen import FrozenPlan, freeze

    add_second(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.jsonl").write_text('{"text": "words"}\n')
    for name in ("heldout", "other"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "others"}\n')
    planned = read_workflow("second", tmp_path)
    assert planned.out == Path("results/second")
    monkeypatch.setenv(PLAN_VARIABLE, str(freeze(FrozenPlan(planned.study, planned.plan), Path("results"))))
    (tmp_path / "config/second.yaml").unlink()
    job = read_workflow(None, tmp_path)
    assert (job.study.study, job.out) == ("second", Path("results/second"))
    assert job.products["fits/by_tokens"].outputs == ["results/second/fits/by_tokens.json"]
    with pytest.raises(UserError, match="study `default` asked for within an invocation of study `second`"):
        read_workflow("default", tmp_path)


@pytest.mark.slow
def test_a_study_from_a_template_is_a_whole_dag(tmp_path):
    """What `upcycle init` prints works at once: every run and product of the small study, and its two token sets."""
    checkout = make_checkout(tmp_path / "checkout")
    shutil.copy(REPOSITORY / "config.yaml", checkout.root / "config.yaml")
    upcycle = [SNAKEMAKE.with_name("upcycle")]
    where = {"cwd": checkout.root, "env": checkout.environment(), "capture_output": True, "text": True, "check": True}
    made = subprocess.run([*upcycle, "init", "mine"], **where).stdout
    assert "  snakemake --config study=mine  " in made
    first = (checkout.root / "config" / "mine.yaml").read_text().partition("\n")[0]
    assert first == "# yaml-language-server: $schema=../workflow/schemas/study.schema.json"
    plan = json.loads(subprocess.run([*upcycle, "plan", "--json", "--study", "mine"], **where).stdout)
    jobs = checkout.jobs("--config", "study=mine")
    trained = sum(jobs.pop(rule) for rule in ("pretrain_dense", "pretrain_moe", "upcycle", "decay"))
    assert trained == plan["total"]["runs"] > 50
    study = yaml.safe_load((checkout.root / "config.yaml").read_text())
    evaluated = len(study["sweeps"]["dense"]["steps"]) + len(study["sweeps"]["moe"]["steps"])
    assert jobs == {
        "tokenize": 2, "losses": 1, "evaluate": evaluated, "evaluations": 1, "fit": len(study["fits"]),
        "figure": len(study["figures"]), "table": len(study["tables"]), "report": 1,
    }  # fmt: skip
