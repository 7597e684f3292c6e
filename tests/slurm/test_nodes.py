"""Training on two nodes of a real SLURM: the losses of one node, and every end reaches whoever waits for it."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from checkouts import Checkout, make_checkout, wait_for
from slurm_lab import SlurmLab

from upcycle.study.plan import build_plan
from upcycle.study.spec import RunSpec
from upcycle.study.study import load_study

pytestmark = [pytest.mark.slow, pytest.mark.workflow]
UPCYCLE = Path(sys.executable).with_name("upcycle")
EXECUTION = "execution: {device: cpu, devices: 2, nodes: 2, save_seconds: 3600, log_steps: 1}"


@pytest.fixture(scope="module")
def prepared(slurm_lab, tmp_path_factory) -> Checkout:
    """A checkout whose runs take two processes on two nodes, with its tokens."""
    checkout = make_checkout(tmp_path_factory.mktemp("nodes") / "checkout")
    checkout.edit("config.yaml", "execution: {device: cpu, fork_server: true, save_seconds: 3600}", EXECUTION)
    checkout.edit("config.yaml", "balance_group: 4", "balance_group: 2")
    long = "  long: {kind: dense, model: tiny, steps: 200000, set: {optim.lr: 2e-2}}\n"
    checkout.edit("config.yaml", "sweeps:\n", f"sweeps:\n{long}")
    run = next(iter(runs_of(checkout).values()))
    slurm_lab.run(UPCYCLE, "tokenize", run.data.tokens_id, cwd=checkout.root, env=checkout.environment())
    return checkout


def runs_of(checkout: Checkout) -> dict[str, RunSpec]:
    return build_plan(load_study(checkout.root / "config.yaml"), checkout.root / "results").runs


def trunk(checkout: Checkout, *, long: bool) -> str:
    """A mixture's trunk of 18 steps, or a dense one of many minutes."""
    trunks = [run for run in runs_of(checkout).values() if run.role == "trunk" and run.parent is None]
    return next(run.id for run in trunks if (run.end_step > 10_000) == long and (run.moe is None) == long)


def submit(lab: SlurmLab, checkout: Checkout, run: str, *options: str) -> int:
    script = f"exec {UPCYCLE} train {run}"
    options = ("--parsable", "--nodes=2", "--mem=2000", "-t", "10", "-o", "job.out", *options)
    return int(lab.run("sbatch", *options, "--wrap", script, cwd=checkout.root, env=checkout.environment()).stdout)


def ended(lab: SlurmLab, checkout: Checkout, job: int) -> tuple[str, str]:
    """State of a job at its end with its exit code, and what it printed."""
    wait_for(lambda: lab.job(job).state not in ("PENDING", "RUNNING", "COMPLETING"), f"the end of job {job}")
    shown = lab.run("scontrol", "show", "job", str(job)).stdout
    state = re.search(r"JobState=(\w+)", shown)[1]
    code = re.search(r"ExitCode=(\S+)", shown)[1]
    return f"{state} {code}", (checkout.root / "job.out").read_text()


def losses(root: Path, run: str) -> list[tuple]:
    rows = (root / "results" / "runs" / run / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row.get("loss"), row.get("grad_norm"), row.get("heldout")) for row in map(json.loads, rows)]


def test_two_nodes_train_as_one_with_as_many_processes(slurm_lab, prepared, tmp_path):
    run = trunk(prepared, long=False)
    job = submit(slurm_lab, prepared, run)
    assert ended(slurm_lab, prepared, job)[0] == "COMPLETED 0:0", (prepared.root / "job.out").read_text()
    one = Checkout(Path(shutil.copytree(prepared.root, tmp_path / "one")))
    shutil.rmtree(one.root / "results" / "runs")
    one.edit("config.yaml", "nodes: 2", "nodes: 1")
    slurm_lab.run(UPCYCLE, "train", run, cwd=one.root, env=one.environment())
    assert losses(prepared.root, run) == losses(one.root, run)
    assert len(losses(one.root, run)) > 10
    recorded = [root / "results" / "runs" / run / "weights.safetensors" for root in (prepared.root, one.root)]
    assert recorded[0].read_bytes() == recorded[1].read_bytes()
    assert not list((prepared.root / "results" / ".nodes").iterdir())


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_a_stopped_job_saves_on_both_nodes_and_ends_with_75(slurm_lab, prepared, name):
    """SIGTERM of a preemption, USR1 as the warning before the time limit: SLURM sends them to what srun started."""
    run = trunk(prepared, long=True)
    folder = prepared.root / "results" / "runs" / run
    shutil.rmtree(folder, ignore_errors=True)
    job = submit(slurm_lab, prepared, run)
    curve = folder / "metrics.jsonl"
    wait_for(lambda: curve.exists() and len(curve.read_text().splitlines()) > 20, "some updates")
    slurm_lab.run("scancel", f"--signal={name}", str(job))
    end, words = ended(slurm_lab, prepared, job)
    assert end == "FAILED 75:0", words
    assert len(list((folder / "resume").iterdir())) == 1, words
    assert words.count("upcycle train: ") == 1


def test_a_worker_that_is_killed_ends_the_job_with_its_words(slurm_lab, prepared):
    run = trunk(prepared, long=True)
    folder = prepared.root / "results" / "runs" / run
    shutil.rmtree(folder, ignore_errors=True)
    job = submit(slurm_lab, prepared, run)
    wait_for(lambda: (folder / "metrics.jsonl").exists(), "the first update")
    workers = [pid for pid in slurm_lab.processes_of(job) if b"RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()]
    assert workers
    os.kill(workers[-1], signal.SIGKILL)
    end, words = ended(slurm_lab, prepared, job)
    assert end == "FAILED 1:0", words
    assert "process 1 of 2 was killed by SIGKILL" in words.rpartition("upcycle train: ")[2]
