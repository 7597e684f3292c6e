"""The SLURM jobs of a study that are queued or running, whoever submitted them: Snakemake may have been killed since.

SLURM knows a job's folder, its name and its comment. Snakemake's plugin writes rule and wildcards into the comment,
which name a run or a token set; `slurm_executor` puts the study before the name. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from upcycle.errors import UserError
from upcycle.workflow.alive import is_anyone_alive
from upcycle.workflow.dag import Workflow

SEPARATOR = "\x1f"
FIELDS = ("%i", "%T", "%j", "%k", "%Z", "%N", "%r", "%M", "%L")
SECONDS = 60
"""How long squeue may take. A controller that is down answers after some 20 s, with an error."""
NAME = re.compile(r"(?P<study>.+)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""Of a job: the study, then the number of the invocation."""


@dataclass(frozen=True)
class SlurmJob:
    """A job of this workflow as squeue shows it."""

    id: str
    state: str
    """RUNNING, PENDING, COMPLETING, ..."""
    name: str
    comment: str
    """rule_<rule>, then _wildcards_<wildcards> if the rule has any."""
    nodes: str
    """Where it runs; empty while it waits."""
    reason: str
    """Why it waits (Resources, Priority, QOSMaxJobsPerUserLimit, ...); None while it runs."""
    elapsed: str
    left: str
    """Times as SLURM prints them: [days-][hours:]minutes:seconds. Left until the job's limit."""

    @property
    def rule(self) -> str:
        """Snakemake's rule, e.g. pretrain_dense."""
        return self.comment.removeprefix("rule_").partition("_wildcards_")[0]

    @property
    def wildcards(self) -> str:
        """Their values joined by `_`: a run's id for a job that trains."""
        return self.comment.partition("_wildcards_")[2]

    @property
    def study(self) -> str | None:
        """The study whose invocation submitted it."""
        match = NAME.fullmatch(self.name)
        return match["study"] if match else None

    def __str__(self) -> str:
        where = f"on {self.nodes} for {self.elapsed}" if self.nodes else f"waits: {self.reason}"
        return f"{self.id} {self.rule} {self.wildcards} {self.state} ({where})"


def slurm_jobs(folder: Path) -> list[SlurmJob]:
    """This user's jobs of the workflow that were submitted from `folder` and have not ended; [] without SLURM.

    Raises `UserError` if SLURM does not answer: then nobody knows.
    """
    if shutil.which("squeue") is None:
        return []
    try:
        text = _ask("squeue", "--me", "--noheader", f"--format={SEPARATOR.join(FIELDS)}")
    except NoAnswerError as error:
        raise UserError(f"{error}. Jobs of an earlier invocation may still run; try again when SLURM answers") from None
    rows = [line.split(SEPARATOR) for line in text.splitlines()]
    return [
        SlurmJob(number, state, name, comment, nodes, reason, elapsed, left)
        for number, state, name, comment, where, nodes, reason, elapsed, left in rows
        if comment.startswith("rule_") and _same(Path(where), folder)
    ]


def study_jobs(workflow: Workflow, jobs: list[SlurmJob]) -> list[SlurmJob]:
    """Those that make something of this study: a run or a token set that it names, or a product of its own."""
    runs, tokens = tuple(workflow.plan.runs), workflow.token_sets  # an id, with its digest, begins no other
    return [
        job
        for job in jobs
        if job.study == workflow.study.study or job.wildcards.startswith(runs) or job.wildcards in tokens
    ]


def orphaned_jobs(jobs: list[SlurmJob], folder: Path) -> list[SlurmJob]:
    """These jobs while no Snakemake runs in `folder` that looks after them. The next one takes them over."""
    return jobs if is_anyone_alive(folder) is False else []


def job_states(numbers: list[str]) -> dict[str, str] | None:
    """State of each job, by squeue, or by sacct if the controller has forgotten it; None if SLURM does not answer.

    Jobs that neither knows are left out. A state is one word: CANCELLED, not sacct's "CANCELLED by 0".
    """
    try:
        found = _table(_ask("squeue", "--me", "--noheader", "--states=all", "--format=%i|%T"))
    except NoAnswerError:
        return None
    forgotten = [number for number in numbers if number not in found]
    if forgotten and shutil.which("sacct") is not None:
        with contextlib.suppress(NoAnswerError):  # no accounting here, or not at the moment
            query = ["-X", "-n", "-P", "--format=JobIDRaw,State", f"--jobs={','.join(forgotten)}"]
            found |= _table(_ask("sacct", *query))
    return {number: found[number] for number in numbers if number in found}


class NoAnswerError(RuntimeError):
    """A command of SLURM's failed, or did not end in time."""


def _ask(*command: str) -> str:
    """What a command of SLURM's prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"{command[0]}: no answer within {SECONDS} s") from None
    if done.returncode:
        raise NoAnswerError(f"{command[0]}: {done.stderr.strip()}")
    return done.stdout


def _table(text: str) -> dict[str, str]:
    rows = (line.partition("|") for line in text.splitlines())
    return {number.strip(): state.split()[0] for number, _, state in rows if state.strip()}


def _same(one: Path, other: Path) -> bool:
    """Whether two names lead to one folder, here."""
    try:
        return os.path.samefile(one, other)  # noqa: PTH121 - pathlib's raises the same
    except OSError:
        return False
