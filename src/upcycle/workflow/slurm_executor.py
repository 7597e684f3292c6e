"""Snakemake's SLURM executor with what its plugin (2.8.0) lacks when something goes wrong on a cluster.

The plugin writes the sbatch call; here it is decided what an end means and whether a job is submitted again:

- Jobs that a killed invocation left behind are taken over: they are watched as if submitted now, and not submitted
  twice.
- States are read with squeue, and with sacct for jobs that the controller has forgotten. The plugin knows neither
  "CANCELLED by 0" nor the end of a preempted job, and waits for ever.
- A job that was preempted, or says by its exit code that the same command should be called again, is submitted again
  and counts as no retry. Exit codes after which a retry cannot help end it. Anything else is one of the `retries`.
- An sbatch that fails is repeated with growing pauses, unless SLURM says that the request itself is wrong.
- Ctrl-C also cancels jobs that were just being submitted or looked at.
- SLURM never requeues: one of the two must decide. Job arrays are refused.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import snakemake_executor_plugin_slurm as plugin
from snakemake_executor_plugin_slurm.utils import get_job_wildcards
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

from upcycle.errors import UserError
from upcycle.train.processes.forkserver import FORK_VARIABLE
from upcycle.train.processes.preemption import HOPELESS, PREEMPTED
from upcycle.workflow.dag import Workflow
from upcycle.workflow.failures import exit_code_in
from upcycle.workflow.slurm_jobs import SlurmJob, job_states, slurm_jobs, study_jobs

BAD = frozenset(
    ["BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"]
)
"""States of a job that has ended otherwise than COMPLETED."""
NO_RETRY = (2, HOPELESS)
"""Exit codes of `upcycle` after which the same command would fail the same way."""
PAUSES = (5, 10, 20, 40, 60)
"""Seconds between two attempts to submit; the last one for ever."""
AGAIN_SECONDS = 20
"""Pause before a job that should be called again is."""
MISSES = 5
"""A job is lost when neither squeue nor sacct knew it so many times in a row."""
WRONG = re.compile(r"invalid|unrecognized|not available|can ?not be satisfied|permission|violates|unable to open", re.I)
"""Words of sbatch about a request that will not get better by itself ..."""
LIMIT = re.compile(r"SubmitJob|job submit limit|MaxJobs|temporarily|contact|timed out|connection", re.I)
"""... and about a limit or an outage, which will."""


class SlurmExecutor(plugin.Executor):
    """Submits, watches and ends the jobs of one invocation."""

    study = ""
    left: list[SlurmJob]
    """Jobs that are there from before."""
    unknown: UserError | None = None
    """Why nobody knows which are."""

    def __post_init__(self, test_mode: bool = False) -> None:
        settings = self.workflow.executor_settings
        if settings.array_jobs:
            raise WorkflowError(
                "slurm-array-jobs: job arrays are not supported here; remove the setting. An array's tasks share one "
                "comment and one set of resources, so jobs could not be told apart after a restart, and the plugin "
                "loses tasks whose array it has only partly submitted (snakemake-executor-plugin-slurm, issue 473)"
            )
        if self.unknown:
            raise WorkflowError(str(self.unknown))
        settings.requeue, settings.no_requeue = False, True
        os.environ.pop(FORK_VARIABLE, None)  # jobs inherit the environment; a job has its node for itself
        super().__post_init__(test_mode)
        self.run_uuid: str = f"{self.study}-{self.run_uuid}"
        self._stopping = threading.Event()
        self._submission = threading.local()
        self._misses: dict[str, int] = {}
        self._left = {job.comment: job for job in self.left}
        self._say_what_is_left()

    # Submitting

    def run_job(self, job: JobExecutorInterface) -> None:
        """Submit a job, or take over the one that does the same; in one of the plugin's two threads."""
        left = self._left.pop(_comment(job), None)
        if left is not None:
            log = self.slurm_logdir / f"rule_{job.name}" / get_job_wildcards(job) / f"{left.id}.log"
            self._report_job_submission_threadsafe(SubmittedJobInfo(job, left.id, {"slurm_logfile": log}))
            return
        for seconds in _pauses():
            self._submission.refusal = None
            super().run_job(job)
            refusal = self._submission.refusal
            if refusal is None:
                return
            if WRONG.search(refusal) and not LIMIT.search(refusal):
                self._fail_for_good(SubmittedJobInfo(job), refusal)
                return
            why = re.sub(r"\s+", " ", refusal.partition("sbatch call:")[0])
            self.logger.warning(f"{job.name} {get_job_wildcards(job)}: {why.strip()} Next attempt in {seconds} s.")
            if self._stopping.wait(seconds):
                return

    def _report_job_error_threadsafe(self, job_info: SubmittedJobInfo, msg: str) -> None:
        """The plugin's report that a submission failed: `run_job` decides."""
        self._submission.refusal = msg

    def _submit_again(self, job: JobExecutorInterface) -> None:
        if not self._stopping.is_set():
            self._job_submission_executor.submit(self.run_job, job)

    # Watching

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Report jobs that have ended; yield the others."""
        states = job_states([str(info.external_jobid) for info in active_jobs]) if active_jobs else {}
        for info in active_jobs:
            number = str(info.external_jobid)
            state = states.get(number, "") if states is not None else "UNREACHABLE"
            self._misses[number] = 0 if state else self._misses.get(number, 0) + 1
            if state == "COMPLETED":
                self._remove_log(info)
                self.report_job_success(info)
            elif state in BAD:
                self._take_end(info, state)
            elif self._misses[number] >= MISSES:
                self.report_job_error(info, msg=f"SLURM knows job {number} no longer. ", aux_logs=_logs(info))
            else:
                yield info

    def _take_end(self, info: SubmittedJobInfo, state: str) -> None:
        """What follows from a job's bad end."""
        code = exit_code_in(_logs(info))
        if state == "PREEMPTED" or (code == PREEMPTED and state == "FAILED"):
            how = "was preempted" if state == "PREEMPTED" else "was told to stop, and saved"
            self.logger.warning(
                f"SLURM job {info.external_jobid} ({info.job.name} {get_job_wildcards(info.job)}) {how}. "
                f"It is submitted again in {AGAIN_SECONDS} s and continues from its last saved state."
            )
            again = threading.Timer(AGAIN_SECONDS, self._submit_again, [info.job])
            again.daemon = True
            again.start()
            return
        msg = f"SLURM job {info.external_jobid} ended as {state}. "
        if code in NO_RETRY and state == "FAILED":
            self._fail_for_good(info, msg + "A retry cannot help. ")
        else:
            self.report_job_error(info, msg=msg, aux_logs=_logs(info))

    def _fail_for_good(self, info: SubmittedJobInfo, msg: str) -> None:
        """Report an error that uses up the job's retries."""
        job: Any = info.job
        job.attempt = job.restart_times + 1
        self.report_job_error(info, msg=msg, aux_logs=_logs(info))

    def _remove_log(self, info: SubmittedJobInfo) -> None:
        if not self.workflow.executor_settings.keep_successful_logs:
            for log in _logs(info):
                Path(log).unlink(missing_ok=True)

    # Ending

    def cancel(self) -> None:
        """Ctrl-C: submit nothing more, then cancel everything."""
        self._stopping.set()
        self._job_submission_executor.shutdown(wait=True, cancel_futures=True)
        super().cancel()

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel these, and whatever else this invocation has submitted: the list lacks what is being looked at."""
        super().cancel_jobs(active_jobs)
        words = ["scancel", "--me", f"--name={self.run_uuid}"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            self.logger.error(f"{done.stderr.strip()}. Jobs may still run. Cancel them with: {' '.join(words)}")

    def _say_what_is_left(self) -> None:
        wanted = {_comment(job) for job in self.dag.needrun_jobs()}
        taken = [job for job in self.left if job.comment in wanted]
        others = [job for job in self.left if job.comment not in wanted]
        if taken:
            self.logger.warning(f"Jobs of an earlier invocation, taken over and not submitted again: {_list(taken)}")
        if others:
            numbers = " ".join(job.id for job in others)
            self.logger.warning(
                f"Jobs of an earlier invocation that this one does not need: {_list(others)}. "
                f"They go on unwatched. To cancel them: scancel {numbers}"
            )


def install(workflow: Workflow, folder: Path) -> None:
    """Let `executor: slurm` mean this executor, for this study, and find the jobs in `folder` that are left.

    Before Snakemake looks at any file: a job that ends meanwhile is then found finished, or found here.
    """
    if shutil.which("squeue") is None:
        return
    SlurmExecutor.study, SlurmExecutor.left = workflow.study.study, []
    try:
        SlurmExecutor.left = study_jobs(workflow, slurm_jobs(folder))
    except UserError as error:  # matters only if SLURM is the executor
        SlurmExecutor.unknown = error
    ExecutorPluginRegistry().get_plugin("slurm").executor = SlurmExecutor


def _pauses() -> Iterator[float]:
    yield from PAUSES
    while True:
        yield PAUSES[-1]


def _comment(job: Any) -> str:
    """As the plugin writes it."""
    wildcards = get_job_wildcards(job)
    return f"rule_{job.name}_wildcards_{wildcards}" if wildcards else f"rule_{job.name}"


def _logs(info: SubmittedJobInfo) -> list[str]:
    """What the job's node wrote, if it wrote anything."""
    log = (info.aux or {}).get("slurm_logfile")
    return [str(log)] if log is not None and Path(log).exists() else []


def _list(jobs: list[SlurmJob]) -> str:
    more = f", and {len(jobs) - 5} more" if len(jobs) > 5 else ""
    return ", ".join(map(str, jobs[:5])) + more
