"""Each fault on a real SLURM: what the user sees, after how long, and that no step and no bit is lost.

`make test` leaves out those marked `slurm_fault`. `make slurm-faults` runs all of them and prints a table.
"""

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import pytest
from built_once import built_once
from checkouts import Checkout, wait_for
from slurm_faults import LIVE, STEPS, Invocation, Seen, Watch, faulty, record, results_of, write_study
from slurm_lab import SlurmLab

pytestmark = [pytest.mark.slow, pytest.mark.workflow]
SEEDS = 2


def undisturbed_results(factory, seeds: int):
    """Results of the same runs by the local executor."""

    def build(folder):
        write_study(folder / "checkout", seeds).run("--cores=2")

    return results_of(built_once(factory, f"undisturbed-{seeds}", build) / "checkout")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return undisturbed_results(tmp_path_factory, 1)


@pytest.fixture(scope="module")
def undisturbed_seeds(tmp_path_factory):
    return undisturbed_results(tmp_path_factory, SEEDS)


@pytest.fixture
def study(slurm_lab, tmp_path):
    with faulty(slurm_lab, tmp_path / "checkout") as study:
        yield study


def ends_well(study, invocation: Invocation, undisturbed, jobs: int, seeds: int = 1, *, only: str = "") -> None:
    """Exit code 0, the undisturbed results to the last bit, so many jobs a trunk (or for this one), nothing twice."""
    assert invocation.end() == 0, invocation.text()
    runs = results_of(study.root)
    assert runs == {run: undisturbed[run] for run in undisturbed if run in runs}
    assert len(runs) == 2 * seeds
    assert "another process is writing" not in invocation.text()
    for run in study.runs():
        submitted = study.jobs(run)
        assert len(submitted) == (jobs if only in run else 1), submitted
        assert [study.lab.restarts(job.id) for job in submitted] == [0] * len(submitted)
        assert len(study.trainings.processes[run]) == len(submitted)
        assert study.trainings.together[run] == 1
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
    wait_for(lambda: study.saved(run) > 0, f"a saved state of {run}")
    job = last_job(study, run)
    saved, step = study.saved(run), study.step(run)
    fault(job)
    watch = Watch()
    said = invocation.wait_for_words(words)
    seconds = watch.seconds()
    again = study.resumed_at(run, invocation)
    resumed_after = watch.seconds()
    assert again >= (saved if lost else step)
    work = (
        f"resumed after {resumed_after:.0f} s at the last saved state"
        if lost
        else (f"saved at once, resumed after {resumed_after:.0f} s: no step lost")
    )
    record(Seen(kind, said, seconds, work))
    return invocation


def test_cancelled_by_someone(study, undisturbed):
    invocation = killed_at(
        study, lambda job: study.lab.cancel(job.id), "scancel from outside", "ended as CANCELLED", lost=False
    )
    ends_well(study, invocation, undisturbed, jobs=2)


@pytest.mark.slurm_fault
@pytest.mark.parametrize(("partition", "mode"), [("killable", "CANCEL"), ("scavenge", "REQUEUE")])
def test_preempted(slurm_lab, tmp_path, undisturbed, partition, mode):
    """An urgent job wants the node. Ours saves, and is submitted again, by Snakemake alone, without a retry."""

    def urgent(job):
        number = slurm_lab.run(
            "sbatch", "--parsable", "-p", "urgent", "-w", job.node, "--exclusive", "-t", "1",
            "-o", str(slurm_lab.folder / "log" / "urgent.out"), "--wrap", "sleep 1",
        ).stdout  # fmt: skip
        assert int(number) > job.id

    with faulty(slurm_lab, tmp_path / "checkout", partition=partition) as study:
        invocation = killed_at(
            study, urgent, f"preemption, PreemptMode={mode}", "(was preempted|was told to stop)", lost=False
        )
        ends_well(study, invocation, undisturbed, jobs=2)
        assert "Trying to restart" not in invocation.text()


def on_two_nodes(checkout: Checkout, nodes: int = 2) -> None:
    """Its runs take a process on each of two nodes, and are short; one node with two processes is the same to a bit."""
    checkout.edit("config.yaml", "save_seconds: 1", f"save_seconds: 1, devices: 2, nodes: {nodes}")
    checkout.edit("config.yaml", f"steps: [{STEPS}]", "steps: [500]")


@pytest.fixture(scope="module")
def undisturbed_pair(tmp_path_factory):
    def build(folder):
        checkout = write_study(folder / "checkout")
        on_two_nodes(checkout, nodes=1)
        checkout.run("--cores=2")

    return results_of(built_once(tmp_path_factory, "undisturbed-pair", build) / "checkout")


@pytest.mark.slurm_fault
def test_preempted_on_two_nodes(slurm_lab, tmp_path, undisturbed_pair):
    """An urgent job wants one of the nodes. The workers of both save together, and the next attempt resumes on both."""

    def urgent(job):
        assert sorted(study.workers(job)) == ["0", "1"]
        slurm_lab.run(
            "sbatch", "-p", "urgent", "-w", "node2", "--exclusive", "-t", "1",
            "-o", str(slurm_lab.folder / "log" / "urgent.out"), "--wrap", "sleep 1",
        )  # fmt: skip

    with faulty(slurm_lab, tmp_path / "checkout", partition="killable") as study:
        on_two_nodes(study.checkout)
        invocation = killed_at(
            study, urgent, "preemption of one of a job's two nodes", "(was preempted|was told to stop)", lost=False
        )
        assert invocation.end() == 0, invocation.text()
        assert results_of(study.root) == undisturbed_pair
        assert len(undisturbed_pair) == 2
        assert "Trying to restart" not in invocation.text()  # exit code 75 costs no retry
        (run,) = study.runs()
        assert len(study.jobs(run)) == 2
        assert study.trainings.together[run] == 4  # a launcher and a worker on each node
        assert len(study.trainings.processes[run]) == 8


@pytest.mark.slurm_fault
def test_worker_killed(study, undisturbed):
    invocation = killed_at(
        study, lambda job: os.kill(study.training(job), signal.SIGKILL), "worker killed (SIGKILL)",
        r"killed by SIGKILL", lost=True,
    )  # fmt: skip
    ends_well(study, invocation, undisturbed, jobs=2)


@pytest.mark.slurm_fault
def test_job_killed(study, undisturbed):
    def kill(job):
        for pid in study.lab.processes_of(job.id):
            os.kill(pid, signal.SIGKILL)

    invocation = killed_at(study, kill, "job killed (all its processes)", r"ended as \w+", lost=True)
    ends_well(study, invocation, undisturbed, jobs=2)


@pytest.mark.slurm_fault
def test_node_lost(study, undisturbed):
    lost = []

    def lose(job):
        lost.append(job.node)
        study.lab.kill_node(job.node)

    invocation = killed_at(study, lose, "node lost", "ended as NODE_FAIL", lost=True)
    ends_well(study, invocation, undisturbed, jobs=2)
    study.lab.start_node(lost[0])
    study.lab.wait_for_nodes()


@pytest.mark.slurm_fault
def test_warned_of_the_time_limit(study, undisturbed):
    """USR1 two minutes before it: as a preemption."""

    def come_near(job):
        give_time(study, job, minutes=2)
        pid = study.training(job)
        wait_for(lambda: not is_stopped(pid), "the warning")

    invocation = killed_at(
        study, come_near, "time limit, warned before it (USR1@120)", "was told to stop, and saved", lost=False
    )
    ends_well(study, invocation, undisturbed, jobs=2)
    assert "Trying to restart" not in invocation.text()


def give_time(study, job, minutes: int) -> None:
    """A job's new time limit, which it reaches: its training stops until SLURM sends it a signal (and SIGCONT)."""
    os.kill(study.training(job), signal.SIGSTOP)
    study.lab.run("scontrol", "update", f"jobid={job.id}", f"timelimit={minutes}")


def is_stopped(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return "State:\tT" in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.mark.slurm_fault
def test_time_limit(study, undisturbed):
    """A job that is not warned. Its next attempt asks for twice the time."""
    study.checkout.edit("src/upcycle/workflow/resources.py", 'f"--signal=USR1@{WARNING_SECONDS}"', '""')
    asked = []

    def pass_it(job):
        asked.append(job.limit)
        give_time(study, job, minutes=1)
        wait_for(lambda: study.lab.job(job.id).state != "RUNNING", "the end of its time")

    invocation = killed_at(study, pass_it, "time limit, without a warning", "ended as TIMEOUT", lost=True)
    ends_well(study, invocation, undisturbed, jobs=2)
    asked.append(study.jobs(study.runs()[0])[-1].limit)
    first, second = (int(limit.removesuffix(":00")) for limit in asked)  # minutes:seconds
    assert second == 2 * first


@pytest.mark.slurm_fault
def test_disk_full(slurm_lab, tmp_path, undisturbed_seeds):
    """Where one run writes. It fails at once, the other goes on, and after some space is freed nothing is lost."""
    full = min(run for run in undisturbed_seeds if run.startswith("dense-"))
    folder = tmp_path / "checkout" / "results" / "runs" / full
    folder.mkdir(parents=True)
    with mounted(slurm_lab, folder), faulty(slurm_lab, tmp_path / "checkout", SEEDS) as study:
        invocation = study.start()
        wait_for(lambda: study.saved(full) > 0, f"a saved state of {full}")
        filler = folder / "filler"
        slurm_lab.run("dd", "if=/dev/zero", f"of={filler}", "bs=4k", check=False)
        watch = Watch()
        words = "the disk is full. The last saved state is intact: free some space and give the same command again"
        invocation.wait_for_words(words)
        seconds = watch.seconds()
        assert invocation.end() == 1
        assert "Trying to restart" not in invocation.text()
        assert len(study.jobs(full)) == 1
        finished = results_of(study.root)
        assert finished == {run: undisturbed_seeds[run] for run in finished}
        assert [run.partition("-")[0] for run in sorted(finished)] == ["decay", "dense"]
        saved = study.saved(full)
        assert saved > 0
        slurm_lab.run("rm", filler)
        again = study.start()
        assert study.resumed_at(full, again) >= saved
        ends_well(study, again, undisturbed_seeds, jobs=2, seeds=SEEDS, only=full)
    work = "one attempt; other runs finish; with free space the same command resumes at the last saved state"
    record(Seen("disk full", words.partition(".")[0], seconds, work))


@contextlib.contextmanager
def mounted(lab: SlurmLab, folder):
    """A file system of 4 MB in the lab."""
    if not lab.has_namespace():
        pytest.skip("a file system is mounted where a lab has a mount namespace")
    lab.run("mount", "-t", "tmpfs", "-o", "size=4m", "none", folder)
    try:
        yield
    finally:
        lab.run("umount", folder)


@pytest.mark.slurm_fault
def test_controller_restarted(study, undisturbed):
    """While a job trains, and for longer than it trains."""
    invocation = study.start()
    (run,) = study.wait_for_step(100)
    study.lab.stop_controller()
    wait_for(lambda: (study.root / "results" / "runs" / run / "metrics.json").exists(), "the run's end")
    time.sleep(5)
    study.lab.start_controller()
    watch = Watch()
    said = invocation.wait_for_words(r"1/2  dense trunk to \S+")
    seconds = watch.seconds()
    ends_well(study, invocation, undisturbed, jobs=1)
    record(Seen("slurmctld down for longer than a job, then back", said, seconds, "unaffected"))


@pytest.mark.slurm_fault
def test_submissions_refused(slurm_lab, tmp_path, undisturbed_seeds):
    """The account may have one job at a time: sbatch refuses the others until it has ended."""
    limit = ("sacctmgr", "-i", "modify", "user", "root", "set")
    slurm_lab.run(*limit, "MaxSubmitJobs=1")
    try:
        with faulty(slurm_lab, tmp_path / "checkout", seeds=SEEDS) as study:
            watch = Watch()
            invocation = study.start()
            invocation.wait_for_words(r"Next attempt in \d+ s")
            seconds = watch.seconds()
            ends_well(study, invocation, undisturbed_seeds, jobs=1, seeds=SEEDS)
            assert "Trying to restart" not in invocation.text()
            record(
                Seen(
                    "sbatch refuses (limit of the account), from the start",
                    "... Next attempt in 5 s.",
                    seconds,
                    "waits for its turn",
                )
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


@pytest.mark.slurm_fault
def test_interrupted_with_64_jobs_waiting(slurm_lab, tmp_path):
    """Ctrl-C leaves no job, neither queued nor running, and every finished run. The same command does the rest."""
    limit = ("sacctmgr", "-i", "modify", "user", "root", "set")
    slurm_lab.run(*limit, "MaxJobs=1")
    try:
        with faulty(slurm_lab, tmp_path / "checkout", seeds=66) as study:
            study.checkout.edit("config.yaml", f"steps: [{STEPS}]", "steps: [200], schedule: constant")
            invocation = study.start("--jobs=65")
            invocation.wait_for_words(" 1/66  dense ")
            wait_for(lambda: len(waiting(study)) == 64, "64 waiting jobs")
            finished = results_of(study.root)
            assert finished
            invocation.kill(signal.SIGINT)
            watch = Watch()
            assert invocation.end() == 1
            seconds = watch.seconds()
            wait_for(lambda: not [job for job in study.jobs() if job.state in LIVE], "no job", seconds=20)
            assert finished.items() <= results_of(study.root).items()
            kept = results_of(study.root)
            slurm_lab.run(*limit, "MaxJobs=2")  # so many trainings at once have room on this machine
            again = study.start("--jobs=65")
            assert again.end(1800) == 0, again.text()
            whole = results_of(study.root)
            assert len(whole) == 66
            assert kept.items() <= whole.items()
            assert [len(study.jobs(run)) for run in finished] == [1] * len(finished)
            assert len((study.root / "results" / "losses.csv").read_text().splitlines()) == 1 + 66
            work = "no job is left; finished runs stay, the same command continues to the end"
            record(Seen("Ctrl-C with 64 waiting jobs", "Terminating processes", seconds, work))
    finally:
        slurm_lab.run(*limit, "MaxJobs=-1")


def waiting(study):
    return [job for job in study.jobs() if job.state == "PENDING"]
