"""Each fault on a real SLURM: what the user sees, after how long, and that no step and no bit is lost.

The first tests run with `make test`. All of them run with `make slurm-faults`, which prints a table.
"""

import json
import os
import signal
import time

import pytest
from built_once import built_once
from checkouts import wait_for
from slurm_faults import Invocation, Seen, Watch, faulty, record, results_of, write_study
from slurm_lab import SlurmLab

pytestmark = [pytest.mark.slow, pytest.mark.workflow]
rare = pytest.mark.skipif("FAULTS_FILE" not in os.environ, reason="`make slurm-faults` runs it")
SEEDS = 3


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Results of the same runs by the local executor."""

    def build(folder):
        write_study(folder / "checkout", seeds=SEEDS).run("--cores=2")

    return results_of(built_once(tmp_path_factory, "undisturbed", build) / "checkout")


@pytest.fixture
def study(slurm_lab, tmp_path):
    with faulty(slurm_lab, tmp_path / "checkout") as study:
        yield study


def ends_well(study, invocation: Invocation, undisturbed, jobs: int, seeds: int = 1) -> None:
    """Exit code 0, the undisturbed results to the last bit, so many jobs a trunk, and one owner at a time."""
    assert invocation.end() == 0, invocation.text()
    runs = results_of(study.root)
    assert runs == {run: undisturbed[run] for run in undisturbed if run in runs}
    assert len(runs) == 2 * seeds
    for run in study.runs():
        submitted = study.jobs(run)
        assert len(submitted) == jobs, submitted
        assert "another process is writing" not in invocation.text()
        rows = (study.root / "results" / "runs" / run / "metrics.jsonl").read_text().splitlines()
        steps = [row["step"] for row in map(json.loads, rows) if "lr" in row]
        assert steps == sorted(set(steps))


def last_job(study, run: str):
    return study.jobs(run)[-1]


def test_snakemake_killed_and_started_again_takes_its_jobs_over(study, undisturbed):
    first = study.start()
    (run,) = study.wait_for_step(100)
    first.kill()
    watch = Watch()
    second = study.start()
    second.wait_for_words(f"taken over and not submitted again: {last_job(study, run).id} pretrain_dense {run}")
    seconds = watch.seconds()
    ends_well(study, second, undisturbed, jobs=1)
    assert "Trying to restart" not in second.text()
    record(
        Seen(
            "Snakemake killed (SIGKILL), the same command again",
            "Jobs of an earlier invocation, taken over and not submitted again: ...",
            seconds,
            "continues; one job a run, no retry used",
        )
    )


def killed_at(study, fault, kind: str, words: str, *, lost: bool) -> tuple[Invocation, str, float, str]:
    """Let something happen to a training job; what Snakemake says, after how long, and what that cost."""
    invocation = study.start()
    (run,) = study.wait_for_step(200)
    job = last_job(study, run)
    saved, step = study.saved(run), study.step(run)
    fault(job)
    watch = Watch()
    invocation.wait_for_words(words)
    seconds = watch.seconds()
    again = study.resumed_at(run)
    resumed_after = watch.seconds()
    assert again >= (saved if lost else step)
    work = (
        f"resumed after {resumed_after:.0f} s at the last saved state"
        if lost
        else (f"saved at once, resumed after {resumed_after:.0f} s: no step lost")
    )
    record(Seen(kind, words.replace("\\", ""), seconds, work))
    return invocation


def test_cancelled_by_someone(study, undisturbed):
    invocation = killed_at(
        study, lambda job: study.lab.cancel(job.id), "scancel from outside", "ended as CANCELLED", lost=False
    )
    ends_well(study, invocation, undisturbed, jobs=2)


def test_preempted_and_cancelled(slurm_lab, study, undisturbed):
    """An urgent job wants the node. SLURM would cancel ours; it saves, and is submitted again without a retry."""
    preempted(slurm_lab, study, undisturbed, "killable", "preemption, PreemptMode=CANCEL")


@rare
def test_preempted_and_requeued(slurm_lab, study, undisturbed):
    preempted(slurm_lab, study, undisturbed, "scavenge", "preemption, PreemptMode=REQUEUE")


def preempted(lab: SlurmLab, study, undisturbed, partition: str, kind: str) -> None:
    study.resources = {"slurm_partition": partition}

    def urgent(job):
        number = lab.run(
            "sbatch", "--parsable", "-p", "urgent", "-w", job.node, "--exclusive", "-t", "1",
            "-o", str(lab.folder / "log" / "urgent.out"), "--wrap", "sleep 1",
        ).stdout  # fmt: skip
        assert int(number) > job.id

    invocation = killed_at(study, urgent, kind, "(was preempted|was told to stop)", lost=False)
    ends_well(study, invocation, undisturbed, jobs=2)
    assert "Trying to restart" not in invocation.text()


@rare
def test_worker_killed(study, undisturbed):
    invocation = killed_at(
        study, lambda job: os.kill(study.training(job), signal.SIGKILL), "worker killed (SIGKILL)",
        r"killed by SIGKILL", lost=True,
    )  # fmt: skip
    ends_well(study, invocation, undisturbed, jobs=2)


@rare
def test_job_killed(study, undisturbed):
    def kill(job):
        for pid in study.lab.processes_of(job.id):
            os.kill(pid, signal.SIGKILL)

    invocation = killed_at(study, kill, "job killed (all its processes)", "ended as ", lost=True)
    ends_well(study, invocation, undisturbed, jobs=2)


@rare
def test_node_lost(study, undisturbed):
    lost = []

    def lose(job):
        lost.append(job.node)
        study.lab.kill_node(job.node)

    invocation = killed_at(study, lose, "node lost", "ended as NODE_FAIL", lost=True)
    ends_well(study, invocation, undisturbed, jobs=2)
    study.lab.start_node(lost[0])
    study.lab.wait_for_nodes()


@rare
def test_time_limit(study, undisturbed):
    """The job's next attempt asks for more time."""
    invocation = killed_at(
        study, lambda job: study.lab.run("scontrol", "update", f"jobid={job.id}", "timelimit=0:01"),
        "time limit", "ended as TIMEOUT", lost=False,
    )  # fmt: skip
    ends_well(study, invocation, undisturbed, jobs=2)


@rare
def test_controller_restarted(study, undisturbed):
    """While a job trains, and for longer than it trains."""
    invocation = study.start()
    (run,) = study.wait_for_step(100)
    study.lab.stop_controller()
    wait_for(lambda: (study.root / "results" / "runs" / run / "metrics.json").exists(), "the run's end")
    time.sleep(5)
    study.lab.start_controller()
    watch = Watch()
    invocation.wait_for_words("dense trunk to")
    seconds = watch.seconds()
    ends_well(study, invocation, undisturbed, jobs=1)
    record(Seen("slurmctld down for longer than a job, then back", "nothing; the job's line", seconds, "unaffected"))


@rare
def test_submissions_refused(slurm_lab, tmp_path, undisturbed):
    """The account may have one job at a time: sbatch refuses the others until it has ended."""
    limit = ("sacctmgr", "-i", "modify", "user", "root", "set")
    slurm_lab.run(*limit, "MaxSubmitJobs=1")
    try:
        with faulty(slurm_lab, tmp_path / "checkout", seeds=SEEDS) as study:
            watch = Watch()
            invocation = study.start()
            invocation.wait_for_words(r"Next attempt in \d+ s")
            seconds = watch.seconds()
            ends_well(study, invocation, undisturbed, jobs=1, seeds=SEEDS)
            assert "Trying to restart" not in invocation.text()
            record(
                Seen("sbatch refuses (limit of the account)", "... Next attempt in 5 s.", seconds, "waits for its turn")
            )
    finally:
        slurm_lab.run(*limit, "MaxSubmitJobs=-1")


def test_job_arrays_are_refused(study):
    """Before anything is submitted."""
    before = len(study.lab.jobs())
    invocation = study.start("--slurm-array-jobs=all")
    assert invocation.end() == 1
    assert "job arrays are not supported here; remove the setting" in invocation.text()
    assert len(study.lab.jobs()) == before


@rare
def test_interrupted_with_64_jobs_waiting(slurm_lab, tmp_path):
    """Ctrl-C while they are still being submitted leaves none, neither queued nor running."""
    slurm_lab.run("scontrol", "update", "nodename=ALL", "state=drain", "reason=test")
    try:
        with faulty(slurm_lab, tmp_path / "checkout", seeds=64) as study:
            write = study.checkout.run("--cores=2", "--until", "tokenize")
            assert write.returncode == 0
            invocation = study.start()
            wait_for(lambda: len(study.jobs()) >= 20, "20 of 64 jobs")
            waiting = len(study.jobs())
            invocation.kill(signal.SIGINT)
            watch = Watch()
            assert invocation.end() == 1
            seconds = watch.seconds()
            assert [job for job in study.jobs() if job.state in ("PENDING", "RUNNING")] == []
            record(
                Seen(f"Ctrl-C with {waiting} of 64 jobs submitted", "Terminating processes", seconds, "all cancelled")
            )
    finally:
        slurm_lab.run("scontrol", "update", "nodename=ALL", "state=resume")
