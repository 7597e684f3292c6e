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
import threading
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
execution: {{device: cpu, save_seconds: 1}}
models:
  tiny: {{n_layer: 1, d_model: 16, n_head: 2, batch: 4, warmup_steps: 2, lr: 1e-2, lr_moe: 1e-2}}
moes:
  4x2: {{n_expert: 4, top_k: 2, balance_group: 4}}
sweeps:
  dense: {{kind: dense, model: tiny, steps: [{steps}], seed: {seeds}}}
"""
STEPS = 1500
"""Of a run: some ten seconds of one core, long enough to hit it while it trains."""
OPTIONS = ("--profile=slurm", "--latency-wait=20", "--seconds-between-status-checks=1")
LIVE = ("RUNNING", "PENDING", "COMPLETING")
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def write_study(root: Path, seeds: int = 1) -> Checkout:
    """A checkout with a study of `seeds` trunks and their decays."""
    checkout = make_checkout(root)
    (root / "config.yaml").write_text(CONFIG.format(steps=STEPS, seeds=list(range(seeds))))
    return checkout


def fill_in_profile(checkout: Checkout, lab: SlurmLab, partition: str = "gpu") -> Checkout:
    """The profile as a user of the lab has filled it in."""
    (checkout.root / "slurm").symlink_to("profiles/slurm")
    config, nodes = "profiles/slurm/config.yaml", "profiles/slurm/nodes.yaml"
    checkout.edit(config, "slurm_partition: h100", f"slurm_partition: {partition}")
    checkout.edit(config, "slurm_account: research", f"slurm_account: {ACCOUNT}")
    checkout.edit(nodes, "study: paper", "study: default")
    checkout.edit(nodes, "device: cuda", "device: cpu")
    checkout.edit(nodes, "memory_gb: 960", f"memory_gb: {lab.memory_mb // 1000}")
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

    def wait_for_words(self, words: str, seconds: float = 300) -> str:
        """What it says, once it does; `words` is a pattern."""
        wait_for(lambda: bool(re.search(words, self.text())) or self.process.poll() is not None, words, seconds)
        found = re.search(words, self.text())
        assert found, f"ended without {words!r}:\n{self.text()}"
        return found[0]

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
    trainings: Trainings
    """What trained, and when together."""
    started: list[Invocation] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """Of the checkout, as the lab's processes see it."""
        return self.lab.seen(self.checkout.root)

    def start(self, *words: str) -> Invocation:
        """`snakemake` through SLURM, as a user starts it."""
        out = self.checkout.root / f"out-{len(self.started)}.txt"
        with out.open("w") as file:
            process = self.lab.start(
                SNAKEMAKE, *OPTIONS, *words, cwd=self.checkout.root, env=self.checkout.environment() | ONE_THREAD,
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True,
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

    def resumed_at(self, run: str, invocation: Invocation) -> int:
        """The step at which the present attempt of a run resumed, once it has said so."""
        log = self.root / "results" / "logs" / "train" / f"{run}.log"
        pattern = re.compile(r"resumed at step (\d+)")
        found: list[str] = []

        def said() -> bool:
            with contextlib.suppress(FileNotFoundError):
                found[:] = pattern.findall(log.read_text())
            return bool(found) or invocation.process.poll() is not None

        wait_for(said, f"{run} resumed")
        assert found, invocation.text()
        return int(found[-1])

    # Jobs

    def jobs(self, run: str = "") -> list[Job]:
        """SLURM's jobs of a run, ended ones too, in the order of submission."""
        own = [job for job in self.lab.jobs() if job.id not in self.older and job.comment.startswith("rule_")]
        return [job for job in own if job.comment.endswith(run)]

    def training(self, job: Job) -> int:
        """The process of a job that trains."""
        for pid in self.lab.processes_of(job.id):
            if trained_run(pid):
                return pid
        raise AssertionError(f"job {job.id} does not train")

    def workers(self, job: Job) -> dict[str, int]:
        """Processes of a job on several nodes that train, by rank."""
        found = {}
        for pid in self.lab.processes_of(job.id):
            variables = dict(each.partition("=")[::2] for each in _environment_of(pid))
            if trained_run(pid) and "RANK" in variables:
                found[variables["RANK"]] = pid
        return found


def _environment_of(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return []


@contextlib.contextmanager
def faulty(lab: SlurmLab, root: Path, seeds: int = 1, partition: str = "gpu") -> Iterator[FaultStudy]:
    """A study that is ended after the `with`."""
    checkout = fill_in_profile(write_study(root, seeds), lab, partition)
    found = FaultStudy(lab, checkout, frozenset(job.id for job in lab.jobs()), Trainings(lab, root))
    found.trainings.start()
    try:
        yield found
    finally:
        found.close()
        found.trainings.stop()


def trained_run(pid: int) -> str | None:
    """The run that a process trains: not its launcher, srun or shell."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        if words[1:4] == ["-m", "upcycle.cli", "train"]:
            return words[4]
    return None


class Trainings(threading.Thread):
    """Looks all the time which processes train which run of a checkout."""

    def __init__(self, lab: SlurmLab, root: Path) -> None:
        super().__init__(daemon=True)
        self.lab, self.root = lab, root
        self.processes: dict[str, set[int]] = {}
        """All that have trained a run."""
        self.together: dict[str, int] = {}
        """The most at the same time."""
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.2):
            now: dict[str, set[int]] = {}
            for pid in self.lab.processes():
                run = trained_run(pid)
                if run and self._is_here(pid):
                    now.setdefault(run, set()).add(pid)
            for run, pids in now.items():
                self.processes[run] = self.processes.get(run, set()) | pids
                self.together[run] = max(self.together.get(run, 0), len(pids))

    def stop(self) -> None:
        self._end.set()
        self.join()

    def _is_here(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == self.root
        return False


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
