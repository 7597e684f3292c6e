"""The lab is a SLURM that schedules, kills and comes back as a cluster's does."""

import pytest
from checkouts import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.workflow]


def submit(lab, *options: str, script: str = "sleep 300") -> int:
    out = lab.folder / "log" / "job-%j.out"
    return int(lab.run("sbatch", "--parsable", "-o", str(out), *options, "--wrap", script).stdout)


def test_jobs_get_gpus_and_are_killed_with_their_node(slurm_lab):
    job = submit(slurm_lab, "--gres=gpu:h100:4", "-w", "node1", script="echo $CUDA_VISIBLE_DEVICES; exec sleep 300")
    other = submit(slurm_lab, "--gres=gpu:h100:8", "-w", "node2")
    out = slurm_lab.folder / "log" / f"job-{job}.out"
    wait_for(lambda: out.exists() and out.read_text() == "0,1,2,3\n", "the job's GPUs")
    wait_for(lambda: slurm_lab.job(other).state == "RUNNING" and slurm_lab.processes_of(other), "the other job")
    slurm_lab.kill_node("node1")
    assert not slurm_lab.processes_of(job)
    assert slurm_lab.processes_of(other)
    wait_for(lambda: slurm_lab.job(job).state != "RUNNING", "the controller's notice")
    slurm_lab.start_node("node1")
    for number in (job, other):
        slurm_lab.cancel(number)
    slurm_lab.wait_for_nodes()


def test_the_controller_comes_back_and_a_preempted_job_is_queued_again(slurm_lab):
    job = submit(slurm_lab, "-p", "scavenge", "-w", "node1", "--exclusive")
    wait_for(lambda: slurm_lab.job(job).state == "RUNNING", "the job")
    slurm_lab.stop_controller()
    slurm_lab.start_controller()
    assert slurm_lab.job(job).state == "RUNNING"
    urgent = submit(slurm_lab, "-p", "urgent", "-w", "node1", "--exclusive")
    wait_for(lambda: slurm_lab.job(urgent).state == "RUNNING", "the urgent job")
    assert slurm_lab.job(job).state == "PENDING"
    for number in (job, urgent):
        slurm_lab.cancel(number)
    slurm_lab.wait_for_nodes()
