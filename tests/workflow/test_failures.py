"""The last line that a user sees of jobs that fail is the cause and the fix, whatever ended them."""

import json
import logging
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from checkouts import SNAKEMAKE, Checkout, make_checkout, wait_for

from upcycle.workflow.failures import Failures


def last_lines(checkout: Checkout, *words: str) -> list[str]:
    """What a failing `snakemake words` ends with, from the line that counts the failed jobs."""
    done = checkout.run(*words, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return summary(done.stderr)


def summary(text: str) -> list[str]:
    *_, failed = re.split(r"^(?=\d+ jobs? failed:$)", text, flags=re.MULTILINE)
    return failed.rstrip("\n").split("\n")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path / "a checkout")


@pytest.mark.workflow
def test_a_missing_column(checkout):
    checkout.edit("config.yaml", "heldout_files: [heldout.jsonl]}", "heldout_files: [heldout.jsonl], text: content}")
    assert last_lines(checkout, "sweep_dense") == [
        "1 job failed:",
        "tokenize failed, see results/logs/tokenize/words-1-bpe300.log:",
        "    upcycle tokenize: heldout.jsonl, line 1: no column 'content'; there are text; 101 of 101 rows cannot be "
        "used (101 no text), and max_bad allows 0.100%: repair the text, or raise max_bad of the data set",
    ]


@pytest.mark.workflow
def test_losses_that_are_no_numbers(checkout):
    """Two trunks fail, each for itself. No setting that a study may have does this to so small a model."""
    checkout.edit("src/upcycle/train/schedule.py", "rate = run.optim.lr *", "rate = 1e30 * run.optim.lr *")
    count, *lines = last_lines(checkout, "sweep_dense", "sweep_moe")
    assert count == "2 jobs failed:"
    assert {line.split()[0] for line in lines[::2]} == {"pretrain_dense", "pretrain_moe"}
    for where, why in zip(lines[::2], lines[1::2], strict=True):
        run = re.fullmatch(r"pretrain_\w+ failed, see results/logs/train/(\S+)\.log:", where)
        assert why.startswith(f"    upcycle train: {run[1]}: step ")
        assert "lower optim.lr" in why


@pytest.mark.workflow
def test_a_fit_that_fails(finished, tmp_path):
    """No rows are selected: found when it is fitted, as losses are not known before."""
    checkout = finished.copy(tmp_path / "copied")
    checkout.edit(
        "config.yaml", "{law: additive, sweep: upcycled}", "{law: additive, sweep: upcycled, where: D2 > 1e12}"
    )
    count, where, why = last_lines(checkout, "report")
    assert (count, where) == ("1 job failed:", "fit failed, see results/logs/fits/additive.log:")
    assert why.startswith("    upcycle fit: ")
    assert "where" in why or "D2 > 1e12" in why


@pytest.mark.workflow
@pytest.mark.parametrize(
    ("number", "server"), [(signal.SIGKILL, "true"), (signal.SIGKILL, "false"), (signal.SIGTERM, "false")], ids=str
)
def test_a_run_that_is_killed_or_preempted(checkout, number, server):
    """The last line reports it, and that the same command resumes; so does the log of one that could not."""
    checkout.edit("config.yaml", "steps: [20, 40, 80]", "steps: 100000")
    checkout.edit("config.yaml", "dense_steps: [20, 80]", "dense_steps: 100000")
    checkout.edit("config.yaml", "fork_server: true, save_seconds: 3600", f"fork_server: {server}, save_seconds: 0.2")
    process = subprocess.Popen(
        [SNAKEMAKE, "sweep_dense"], cwd=checkout.root, env=checkout.environment(), stderr=subprocess.PIPE, text=True
    )
    runs = checkout.root / "results/runs"
    wait_for(lambda: any(runs.glob("*/resume/step-*")), "a rolling state")
    (lease,) = [path for path in runs.glob("dense-*/lease") if path.stat().st_size]
    os.kill(json.loads(lease.read_text())["pid"], number)
    _, text = process.communicate()
    assert process.returncode == 1
    count, where, why = summary(text)
    run = lease.parent.name
    assert (count, where) == ("1 job failed:", f"pretrain_dense failed, see results/logs/train/{run}.log:")
    if number == signal.SIGKILL:
        assert why.startswith("    upcycle: killed by SIGKILL (out of memory, or another process).")
        assert (checkout.root / f"results/logs/train/{run}.log").read_text().splitlines()[-1] == why.strip()
    else:
        assert re.match(rf"    upcycle train: {run}: stopped by SIGTERM after step \d+", why)
    assert why.endswith("the same command continues")


# Executors that this machine has not, and rare ends, by the events that Snakemake sends


class Snakemake:
    """Its logger with our handler alone, and the events of jobs."""

    def __init__(self) -> None:
        self.logger = logging.Logger("snakemake.logging")
        self.logger.addHandler(Failures())

    def start(self, job: int, log: Path) -> None:
        self.logger.info("", extra={"event": "job_info", "jobid": job, "log": [str(log)]})

    def fail(self, job: int, *logs: Path, said: str = "", executor: str | None = None) -> None:
        if said:
            self.logger.error(said, extra={"event": "error", "exception": "RuleException"})
        extra = {"event": "job_error", "jobid": job, "rule_name": "decay", "log": [*map(str, logs)]}
        self.logger.error("", extra=extra | {"rule_msg": executor})

    def finish(self, job: int) -> None:
        self.logger.info("", extra={"event": "job_finished", "job_id": job})

    def end(self, capsys: pytest.CaptureFixture[str]) -> list[str]:
        for handler in self.logger.handlers:
            handler.close()
        text = capsys.readouterr().err
        return summary(text) if text else []


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "run.log"
    path.write_text("of an earlier attempt\nupcycle train: old words\n")
    return path


def test_a_job_that_is_restarted_and_finishes_is_not_mentioned(log, capsys):
    snakemake = Snakemake()
    snakemake.start(1, log)
    snakemake.fail(1, log)
    snakemake.finish(1)
    assert snakemake.end(capsys) == []


def test_a_job_that_never_started_is_not_explained_by_an_old_log(log, capsys):
    snakemake = Snakemake()
    snakemake.start(1, log)
    snakemake.fail(1, log, executor="sbatch: error: invalid partition")
    assert snakemake.end(capsys)[-1] == "    sbatch: error: invalid partition"
    snakemake = Snakemake()
    snakemake.start(1, log)
    snakemake.fail(1, log)
    assert snakemake.end(capsys)[1:] == [
        f"decay failed, see {log}:",
        "    it wrote no log; see the lines above",
    ]


def test_a_schedulers_end_comes_last_unless_the_job_told_its_own(log, tmp_path, capsys):
    """SLURM ends a job for memory: its word is the cause. It calls one FAILED that refused its input: that is not."""
    node = tmp_path / "slurm.log"
    for words, expected in (
        ("step 10 of 20, loss 5.1", "SLURM status is: 'OUT_OF_MEMORY'"),
        ("upcycle decay: no space left on device: make room", "upcycle decay: no space left on device: make room"),
    ):
        snakemake = Snakemake()
        snakemake.start(1, log)
        log.write_text(words + "\n")
        node.write_text("slurmstepd: error: Detected 1 oom_kill event\n")
        snakemake.fail(1, log, node, executor="SLURM status is: 'OUT_OF_MEMORY'")
        assert snakemake.end(capsys)[-1] == f"    {expected}"


def test_an_exception_that_nobody_caught_is_shown_with_its_whole_message(log, capsys):
    snakemake = Snakemake()
    snakemake.start(1, log)
    log.write_text('Traceback (most recent call last):\n  File "x.py", line 1, in f\n    f()\nOops: first\nsecond\n')
    snakemake.fail(1, log)
    assert snakemake.end(capsys)[-2:] == ["    Oops: first", "    second"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Command 'x' died with <Signals.SIGSEGV: 11>.", "upcycle: killed by SIGSEGV."),
        ("Command 'x' returned non-zero exit status 139.", "upcycle: killed by SIGSEGV."),
        ("Command 'x' returned non-zero exit status 1.", "step 10 of 20"),
    ],
)
def test_a_job_that_could_not_speak_has_its_signal_in_its_log(log, said, expected, capsys):
    snakemake = Snakemake()
    snakemake.start(1, log)
    log.write_text("step 10 of 20\n")
    snakemake.fail(1, log, said=said)
    assert snakemake.end(capsys)[-1].strip().startswith(expected)
    assert log.read_text().splitlines()[-1].startswith(expected)


def test_of_very_many_jobs_the_last_ones_are_shown(tmp_path, capsys):
    snakemake = Snakemake()
    for job in range(300):
        path = tmp_path / f"{job}.log"
        path.write_text(f"upcycle train: reason {job}\n")
        snakemake.fail(job, path)
    lines = snakemake.end(capsys)
    assert lines[0] == "300 jobs failed:"
    assert len(lines) == 2 + 2 * 10
    assert lines[-1] == "    upcycle train: reason 299"
