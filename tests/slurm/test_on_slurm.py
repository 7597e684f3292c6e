"""A study from text to report as jobs of a real SLURM: the files are the local executor's, bit for bit."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkouts import SNAKEMAKE, Checkout, make_checkout
from slurm_faults import fill_in_profile
from slurm_lab import ACCOUNT, SlurmLab

pytestmark = [pytest.mark.slow, pytest.mark.workflow]
SWEEPS = """\
sweeps:
  upcycled: {kind: upcycled, model: tiny, moe: 4x2, dense_steps: 20, steps: 20}
evaluations:
  other: {dataset: other, sweep: upcycled, max_tokens: 1024}
fits:
  power_by_d1: {law: power, sweep: upcycled, by: D1}
figures:
  figure3: {}
tables:
  table4: {}
"""


def cluster_checkout(root: Path, lab: SlurmLab) -> Checkout:
    """A checkout with a small study, whose profile a user has filled in for the lab."""
    checkout = make_checkout(root)
    config = checkout.root / "config.yaml"
    config.write_text(config.read_text().partition("sweeps:")[0] + SWEEPS)
    return fill_in_profile(checkout, lab)


def contents(root: Path) -> dict[str, Any]:
    """Every weight, curve without its times, and product, by path."""
    results = root / "results"
    found: dict[str, Any] = {str(path): path.read_bytes() for path in results.rglob("*.safetensors")}
    found |= {str(path): path.read_bytes() for path in results.rglob("*.svg")}
    for path in results.rglob("*.csv"):
        with path.open(newline="") as file:
            found[str(path)] = [_timeless(row) for row in csv.DictReader(file)]
    found |= {str(path): path.read_bytes() for path in results.glob("tokens/*/*.bin")}
    for path in results.rglob("evaluations/*.json"):
        found[str(path)] = json.loads(path.read_bytes())
    for path in results.rglob("metrics.jsonl"):
        found[str(path)] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return {name.removeprefix(str(root)): content for name, content in found.items()}


def report_without_times(root: Path) -> str:
    """report.html, figures included, but for what differs between equal trainings: times, and the machine's name.

    These are the parts `Machine and software` and `Time`, the dates of the first and the last run, and the tokens a
    second of each model.
    """
    page = (root / "results" / "report.html").read_text()
    page, parts = re.subn(r"<h3>Machine and software</h3>.*?(?=<h3>Text</h3>)", "", page, flags=re.DOTALL)
    page, dates = re.subn(r" between [^<;]*UTC and [^<;]*UTC", "", page)
    page, speeds = re.subn(r"(<tr><td class=\"id\">.*)<td>[^<]*</td></tr>", r"\1", page)
    assert (parts, dates) == (1, 1), page
    assert speeds == len((root / "results" / "losses.csv").read_text().splitlines()) - 1
    return page


def _timeless(row: dict) -> dict:
    times = [key for key in row if key in ("tokens_per_second", "mfu") or key.endswith("_seconds")]
    return {key: value for key, value in row.items() if key not in times}


def test_a_study_runs_on_slurm_as_it_does_locally(slurm_lab, tmp_path):
    local = cluster_checkout(tmp_path / "local", slurm_lab)
    cluster = Checkout(Path(shutil.copytree(local.root, tmp_path / "cluster", symlinks=True)))
    options = ("--seconds-between-status-checks", "1", "--latency-wait", "20")
    before = {job.id for job in slurm_lab.jobs()}
    done = slurm_lab.run(
        SNAKEMAKE, "--profile", "slurm", *options, cwd=cluster.root, env=cluster.environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = [job for job in slurm_lab.jobs() if job.id not in before]
    assert {job.state for job in made} == {"COMPLETED"}
    assert len(made) == 2 + 4 + 1 + 4  # token sets, runs, evaluation; fit, figure, table, report
    local.run()
    found, expected = contents(cluster.root), contents(local.root)
    assert found.keys() == expected.keys()
    assert len([name for name in found if name.endswith("weights.safetensors")]) == 4
    for name, content in expected.items():
        assert found[name] == content, name
    assert report_without_times(cluster.root) == report_without_times(local.root)
    summaries = [(root / "results" / "summary.txt").read_text() for root in (cluster.root, local.root)]
    assert summaries[0] == summaries[1] != ""
    again = slurm_lab.run(SNAKEMAKE, "--profile", "slurm", cwd=cluster.root, env=cluster.environment())
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_rehearsal_runs_on_slurm_and_asks_for_one_cpu(slurm_lab, tmp_path):
    """Jobs know through their environment that they rehearse, in the processes that SLURM starts on nodes too."""
    checkout = cluster_checkout(tmp_path / "checkout", slurm_lab)
    checkout.edit("config.yaml", "n_expert: 4", "n_expert: 8")  # a mixture of any size has a law for these alone
    before = {job.id for job in slurm_lab.jobs()}
    words = ("rehearse", "--profile", "slurm", "--seconds-between-status-checks", "1", "--latency-wait", "20")
    done = slurm_lab.run(
        SNAKEMAKE.with_name("upcycle"), *words, cwd=checkout.root, env=checkout.environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = [job for job in slurm_lab.jobs() if job.id not in before]
    assert {job.state for job in made} == {"COMPLETED"}
    assert len(made) == 1 + 4 + 3  # a token set, runs; fit, table, report
    asked = slurm_lab.run("squeue", "-h", "-t", "all", "-o", "%i %b %C", "-j", ",".join(str(job.id) for job in made))
    assert {tuple(line.split()[1:]) for line in asked.stdout.splitlines()} == {("N/A", "1")}
    assert [path.name for path in (checkout.root / "results").iterdir()] == ["simulated"]
    assert "<title>SIMULATED: " in (checkout.root / "results/simulated/default/report.html").read_text()


@pytest.mark.parametrize(
    ("path", "old", "new", "named"),
    [
        ("profiles/slurm/config.yaml", "slurm_partition: gpu", "slurm_partition: gpus", "nvalid partition"),
        ("profiles/slurm/config.yaml", f"slurm_account: {ACCOUNT}", "slurm_account: mine", "Invalid account"),
        ("profiles/slurm/config.yaml", "  # constraint: h100", "  constraint: h200", "nvalid feature"),
        ("profiles/slurm/nodes.yaml", "cpus: 64", "cpus: 65", "tokenize.*node configuration is not available"),
        ("config.yaml", "heldout_files: [heldout.jsonl]", "heldout_files: [no.jsonl]", "nothing matches `no.jsonl`"),
    ],
    ids=["partition", "account", "constraint", "node", "data"],
)
def test_what_slurm_would_not_take_is_named_before_a_job_is_submitted(slurm_lab, tmp_path, path, old, new, named):
    checkout = cluster_checkout(tmp_path / "checkout", slurm_lab)
    checkout.edit(path, old, new)
    before = {job.id for job in slurm_lab.jobs()}
    done = slurm_lab.run(SNAKEMAKE, "--profile", "slurm", cwd=checkout.root, env=checkout.environment(), check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(named, done.stderr)
    assert "Traceback" not in done.stderr
    assert {job.id for job in slurm_lab.jobs()} <= before
