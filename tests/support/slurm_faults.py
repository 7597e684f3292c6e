"""A tiny study in a SLURM lab, in which things go wrong, and what came of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkouts import SNAKEMAKE, Checkout, make_checkout, wait_for
from slurm_lab import ACCOUNT, Job, SlurmLab

CONFIG = """\
study: default
data: {{dataset: words, vocab_size: 300, repeat: true}}
datasets:
  words: {{files: [words.jsonl], heldout_files: [heldout.jsonl]}}
context: 32
execution: {{device: cpu, save_seconds: {save_seconds}}}
models:
  tiny: {{n_layer: 1, d_model: 16, n_head: 2, batch: 4, warmup_steps: 2, lr: 1e-2, lr_moe: 1e-2}}
moes:
  4x2: {{n_expert: 4, top_k: 2, balance_group: 4}}
sweeps:
  dense: {{kind: dense, model: tiny, steps: [{steps}], seed: {seeds}}}
"""
STEPS = 1500
"""Of a run: some ten seconds of one core, long enough to hit it while it trains."""
OPTIONS = ("--executor=slurm", "--jobs=64", "--retries=3", "--latency-wait=20", "--seconds-between-status-checks=1")
RESOURCES = {"slurm_partition": "gpu", "slurm_account": ACCOUNT, "mem_mb": 1000, "runtime": 10, "cpus_per_task": 1}
LIVE = ("RUNNING", "PENDING", "COMPLETING")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def write_study(root: Path, *, steps: int = STEPS, seeds: int = 1, save_seconds: float = 1) -> Checkout:
    """A checkout with a study of `seeds` trunks and their decays."""
    checkout = make_checkout(root)
    text = CONFIG.format(steps=steps, seeds=list(range(seeds)), save_seconds=save_seconds)
    (root / "config.yaml").write_text(text)
    return checkout


def results_of(root: Path) -> dict[str, tuple[str, str]]:
    """By finished run: the held-out loss to its last digit, and a hash of the weights."""
    found = {}
    for path in sorted((root / "results" / "runs").glob("*/metrics.json")):
        loss = repr(json.loads(path.read_text())["loss"])
        found[path.parent.name] = loss, hashlib.sha256((path.parent / "weights.safetensors").read_bytes()).hexdigest()
    return found


@dataclass
class Invocation:
    """A running `snakemake`, with what it prints and when."""

    process: subprocess.Popen[Any]
    out: Path

    def text(self) -> str:
        return self.out.read_text(errors="replace")

    def wait_for_words(self, words: str, seconds: float = 300) -> None:
        """Until it has said so."""
        wait_for(lambda: re.search(words, self.text()) or self.process.poll() is not None, words, seconds)
        assert re.search(words, self.text()), f"ended without {words!r}:\n{self.text()}"

    def end(self, seconds: float = 400) -> int:
        """Its exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds} s:\n{self.text()}") from None

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """A signal to Snakemake alone."""
        self.process.send_signal(number)


@dataclass
class FaultStudy:
    """A study in a lab."""

    lab: SlurmLab
    checkout: Checkout
    older: frozenset[int]
    """Jobs of other tests in the same lab."""
    resources: dict[str, Any] = field(default_factory=dict)
    started: list[Invocation] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.checkout.root

    def start(self, *words: str) -> Invocation:
        """`snakemake` through SLURM, as a user starts it."""
        out = self.root / f"out-{len(self.started)}.txt"
        resources = [f"{name}={value}" for name, value in (RESOURCES | self.resources).items()]
        with out.open("w") as file:
            process = self.lab.start(
                "env", "-C", self.root, SNAKEMAKE, *OPTIONS, *words, "--default-resources", *resources,
                env=self.checkout.environment() | ONE_THREAD, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        self.started.append(Invocation(process, out))
        return self.started[-1]

    def close(self) -> None:
        """End what still runs: Snakemake without a word, then its jobs."""
        for invocation in self.started:
            if invocation.process.poll() is None:
                invocation.kill()
                invocation.process.wait()
        for job in self.jobs():
            if job.state in LIVE:
                self.lab.run("scancel", "--signal=KILL", "--full", str(job.id), check=False)
                self.lab.cancel(job.id)
        wait_for(
            lambda: not [job for job in self.jobs() if job.state in ("RUNNING", "PENDING", "COMPLETING")], "the end"
        )

    # Runs

    def runs(self) -> list[str]:
        """Trunks that have begun, in the order of their names."""
        return sorted(path.parent.name for path in (self.root / "results" / "runs").glob("dense-*/metrics.jsonl"))

    def step(self, run: str) -> int:
        """The last step in a run's curve; 0 before the first."""
        path = self.root / "results" / "runs" / run / "metrics.jsonl"
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(json.loads(path.read_text().splitlines()[-1])["step"])
        return 0

    def saved(self, run: str) -> int:
        """The step of a run's last saved state; 0 before the first."""
        states = (self.root / "results" / "runs" / run / "resume").glob("step-*")
        return max((int(path.name.split("-")[1]) for path in states if path.suffix != ".tmp"), default=0)

    def wait_for_step(self, step: int, runs: int = 1) -> list[str]:
        """Until so many trunks are past a step; their names."""
        invocation = self.started[-1]
        wait_for(
            lambda: sum(self.step(run) >= step for run in self.runs()) >= runs or invocation.process.poll() is not None,
            f"step {step} of {runs} runs",
        )
        assert invocation.process.poll() is None, invocation.text()
        return [run for run in self.runs() if self.step(run) >= step]

    def resumed_at(self, run: str) -> int:
        """The step at which the present attempt of a run resumed, once it has said so."""
        log = self.root / "results" / "logs" / "train" / f"{run}.log"
        pattern = re.compile(r"resumed at step (\d+)")
        wait_for(lambda: log.exists() and pattern.search(log.read_text()) is not None, f"{run} resumed")
        found = pattern.search(log.read_text())
        assert found
        return int(found[1])

    # Jobs

    def jobs(self, run: str = "") -> list[Job]:
        """SLURM's jobs of a run, ended ones too, in the order of submission."""
        own = [job for job in self.lab.jobs() if job.id not in self.older and job.comment.startswith("rule_")]
        return [job for job in own if job.comment.endswith(run)]

    def training(self, job: Job) -> int:
        """The process of a job that trains."""
        for pid in self.lab.processes_of(job.id):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"train" in words and any(word.endswith(b"upcycle") for word in words):
                return pid
        raise AssertionError(f"job {job.id} does not train")


@contextlib.contextmanager
def faulty(lab: SlurmLab, root: Path, **study: Any) -> Iterator[FaultStudy]:
    """A study that is ended after the `with`."""
    found = FaultStudy(lab, write_study(root, **study), frozenset(job.id for job in lab.jobs()))
    try:
        yield found
    finally:
        found.close()


# The table


@dataclass(frozen=True)
class Seen:
    """One row: what the user saw, when, and what it cost."""

    fault: str
    seen: str
    """What Snakemake prints."""
    seconds: float
    """From the fault until that."""
    work: str
    """What happened to it."""


def record(seen: Seen) -> None:
    """Add a row to the file that FAULTS_FILE names, if it names one."""
    path = os.environ.get("FAULTS_FILE")
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps(vars(seen)) + "\n")


class Watch:
    """Seconds since the fault."""

    def __init__(self) -> None:
        self.since = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self.since


def table(path: Path) -> str:
    """All rows, as docs/cluster.md shows them."""
    rows = [Seen(**json.loads(line)) for line in path.read_text().splitlines()]
    lines = [f"| {row.fault} | `{row.seen}` | {row.seconds:.0f} s | {row.work} |" for row in rows]
    head = ["| fault | what `snakemake` says | after | what happens to the work |", "|---|---|---|---|"]
    when = f"Measured {time.strftime('%Y-%m-%d')} with {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}."
    return "\n".join([when, "", *head, *lines])


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
