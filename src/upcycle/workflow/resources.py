"""What each job asks a scheduler for: nodes, GPUs, CPUs, memory and wall time, from the plan and what a node offers.

A profile states what a node offers (`profiles/slurm/nodes.yaml`); a study, how many devices and nodes a model's jobs
take. Without a node in the configuration (a local run) a training or an evaluation asks for memory alone, so that no
more run side by side than this machine's memory holds; `--resources mem_mb=N` sets another limit.

| request | a training job's |
|---|---|
| nodes, GPUs of each | `execution.nodes`, `devices` / `nodes` of the run's model |
| CPUs of a node | as its share of the node's GPUs; on a CPU, `threads` of each process |
| memory of a node | HOST_GB a process; 12 bytes a parameter for loading, and again for a snapshot; a quarter more |
| wall time | START_UP_HOURS, and TIME_SAFETY times the segment's tokens at measured speed or the study's rate |

An evaluation runs in one process: one GPU, which holds whole float32 weights. Tokenising a small data set takes the
whole node; each step of a large one takes one CPU and STEP_GB.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from upcycle.data.datasets import HELDOUT_FRACTION
from upcycle.data.parts import PREPARE
from upcycle.errors import UserError
from upcycle.study.counting import count_parameters
from upcycle.study.execution import Execution
from upcycle.study.memory import FLOAT, peak_memory
from upcycle.study.rates import Speeds, expected_seconds, measured_runs, speeds_by_shape
from upcycle.study.spec import RunSpec
from upcycle.workflow.dag import Workflow
from upcycle.workflow.nodes import START_UP_HOURS, TIME_SAFETY, Node
from upcycle.workflow.paths import REHEARSAL, RESULTS
from upcycle.workflow.texts import files_of, stages_of

HOST_GB = 4.0
"""10^9 bytes of a process beside arrays: the interpreter, torch, the CUDA context's and NCCL's host memory."""
MEMORY_SAFETY = 1.25
STEP_GB, STEP_HOURS = 4.0, 4.0
"""10^9 bytes and hours of a step of tokenising: four times what we measured for 10^9 bytes of compressed text."""
WINDOWS_BYTES = 16
"""Memory for a byte of held-out files: 16 bytes a word of five bytes, of files that are compressed to a fifth."""
WARNING_SECONDS = 120
"""Before the end of its wall time a training is told to save. (At the end SLURM would kill it with its srun.)"""
LOCAL_PROCESS_GB = 0.3
"""10^9 bytes of a process of a local job beside arrays: the interpreter and torch."""
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
MB = 1e6


@dataclass(frozen=True)
class JobRequest:
    """What one job asks for; all but `nodes` and `minutes` are of each node."""

    cpus: int
    memory_mb: int
    minutes: int
    gpus: int = 0
    nodes: int = 1


@dataclass(frozen=True)
class Cluster:
    """Requests of a study's jobs on nodes of one kind."""

    workflow: Workflow
    node: Node

    @cached_property
    def _speeds(self) -> Speeds:
        return speeds_by_shape(measured_runs(self.workflow.plan.runs.values(), RESULTS))

    @cached_property
    def _trainings(self) -> dict[str, JobRequest]:
        return {}

    def train(self, run_id: str) -> JobRequest:
        """Of a run's training.

        Raises UserError naming the setting if a node cannot give it.
        """
        if run_id not in self._trainings:
            self._trainings[run_id] = self._train(self.workflow.plan.runs[run_id])
        return self._trainings[run_id]

    def _train(self, run: RunSpec) -> JobRequest:
        execution = self.workflow.study.execution_of(run)
        processes = execution.devices // execution.nodes
        gpus = processes if execution.device == "cuda" else 0
        hours = START_UP_HOURS + TIME_SAFETY * expected_seconds(run, execution, self._speeds) / 3600
        return self._fitting(
            run.id,
            gpus=gpus,
            cpus=self._share(gpus) if gpus else processes * execution.threads,
            memory_mb=_training_memory_mb(run, execution),
            hours=hours,
            nodes=execution.nodes,
        )

    def evaluate(self, run_id: str) -> JobRequest:
        """Of an evaluation of a run on another text: one process.

        Raises UserError if one GPU cannot hold the model (float32) and the logits of a forward pass.
        """
        run, execution = self.workflow.plan.runs[run_id], self.workflow.study.execution
        gpus = 1 if execution.device == "cuda" else 0
        weights, logits = _evaluation_mb(run, execution)
        if gpus and execution.device_memory_gb and weights + logits > 1000 * execution.device_memory_gb:
            raise UserError(
                f"evaluation of {run_id} needs {(weights + logits) / 1000:.0f} GB on one GPU, and execution."
                f"device_memory_gb is {execution.device_memory_gb:g}; lower execution.eval_batch, or leave the run out "
                "of `evaluations`: an evaluation runs on one GPU"
            )
        memory = HOST_GB * 1000 + 2 * MEMORY_SAFETY * weights  # read, and in the model
        cpus = self._share(gpus) if gpus else execution.threads
        return self._fitting(f"evaluation of {run_id}", gpus=gpus, cpus=cpus, memory_mb=math.ceil(memory), hours=1.0)

    def tokenize(self, name: str) -> JobRequest:
        """Of making a small token set, whose text every CPU cuts, or of merging the steps of a large one."""
        node = self.node
        if stages_of(self.workflow, name):
            return self.tokenize_step(name, "")
        return JobRequest(cpus=node.cpus, memory_mb=int(node.memory_gb * 1000), minutes=int(60 * node.max_hours))

    def tokenize_step(self, name: str, step: str) -> JobRequest:
        """Of a step of a large corpus. `prepare` holds the windows of the held-out text."""
        memory = STEP_GB * 1e9
        if step == PREPARE:
            memory += WINDOWS_BYTES * self._heldout_bytes(name)
        return self._fitting(f"{name}, {step}", gpus=0, cpus=1, memory_mb=math.ceil(memory / MB), hours=STEP_HOURS)

    def _heldout_bytes(self, name: str) -> float:
        data = self.workflow.token_sets[name].data
        local = self.workflow.study.datasets[data.dataset]
        if heldout := files_of(local, data.dataset, "heldout_files"):
            return sum(path.stat().st_size for path in heldout)
        return HELDOUT_FRACTION * sum(path.stat().st_size for path in files_of(local, data.dataset, "files"))

    def small(self) -> JobRequest:
        """Of fits, figures, tables and the report."""
        return JobRequest(cpus=1, memory_mb=int(1000 * min(HOST_GB, self.node.memory_gb)), minutes=self._minutes(1.0))

    def _share(self, gpus: int) -> int:
        return max(self.node.cpus * gpus // max(self.node.gpus, 1), 1)

    def _minutes(self, hours: float) -> int:
        return max(math.ceil(60 * min(hours, self.node.max_hours)), 1)

    def _fitting(self, name: str, *, gpus: int, cpus: int, memory_mb: int, hours: float, nodes: int = 1) -> JobRequest:
        node = self.node
        asked = (
            ("GPUs", gpus, node.gpus, "lower execution.devices (of the model), or raise its `nodes`"),
            ("CPUs", cpus, node.cpus, "lower execution.threads or devices, or raise `nodes`"),
            ("MB of memory", memory_mb, int(1000 * node.memory_gb), "raise execution.nodes (of the model)"),
        )
        for what, needed, offered, fix in asked:
            if needed > offered:
                raise UserError(
                    f"{name} needs {needed:,} {what} a node, and the profile's nodes.yaml offers {offered:,}; {fix}"
                )
        return JobRequest(cpus, memory_mb, self._minutes(hours), gpus, nodes)


JOB_KINDS = ("tokenize", "tokenize_step", "train", "evaluate", "small")


def job_resources(workflow: Workflow) -> dict[str, dict[str, Any]]:
    """`resources` of the rules by the kind of their jobs, functions of wildcards; without a node memory alone."""
    if workflow.node is None:
        return {kind: {} for kind in JOB_KINDS} | ({} if REHEARSAL else _local(workflow))
    cluster = Cluster(workflow, workflow.node)
    if REHEARSAL:  # no job computes anything; none asks for a GPU
        small = JobRequest(cpus=1, memory_mb=1000, minutes=10)
        return {kind: _common(lambda wildcards: small, workflow.node) for kind in JOB_KINDS}
    on_cpu = workflow.study.execution.device == "cpu"
    common = {
        "tokenize": _common(lambda wildcards: cluster.tokenize(wildcards.tokens), workflow.node),
        "tokenize_step": _common(
            lambda wildcards: cluster.tokenize_step(wildcards.tokens, wildcards.step), workflow.node
        ),
        "train": _common(lambda wildcards: cluster.train(wildcards.run), workflow.node),
        "evaluate": _common(lambda wildcards: cluster.evaluate(wildcards.run), workflow.node),
        "small": _common(lambda wildcards: cluster.small(), workflow.node),
    }
    kind = f"gpu:{workflow.node.gpu_type}" if workflow.node.gpu_type else "gpu"
    if not on_cpu:
        common["train"]["gres"] = lambda wildcards: f"{kind}:{cluster.train(wildcards.run).gpus}"
        common["evaluate"]["gres"] = lambda wildcards: f"{kind}:{cluster.evaluate(wildcards.run).gpus}"
    # Training starts its own processes on its nodes by srun. An empty `mpi` is how Snakemake's plugin knows.
    common["train"] |= {"nodes": lambda wildcards: cluster.train(wildcards.run).nodes, "mpi": ""}
    common["train"]["slurm_extra"] = f"--signal=USR1@{WARNING_SECONDS}"
    if on_cpu:
        common["train"]["tasks"] = common["train"]["nodes"]  # of GPU jobs the plugin would ask for as many a GPU
    return common


def _local(workflow: Workflow) -> dict[str, dict[str, Any]]:
    """Memory of the jobs of this machine that can need much of it."""

    def train(wildcards: Any) -> int:
        run = workflow.plan.runs[wildcards.run]
        execution = workflow.study.execution_of(run)
        if execution.device == "cpu":
            return math.ceil(execution.devices * (peak_memory(run, execution).peak / MB + 1000 * LOCAL_PROCESS_GB))
        return _training_memory_mb(run, execution)

    def evaluate(wildcards: Any) -> int:
        weights, logits = _evaluation_mb(workflow.plan.runs[wildcards.run], workflow.study.execution)
        return math.ceil(2 * weights + logits + 1000 * LOCAL_PROCESS_GB)

    return {"train": {"mem_mb": train}, "evaluate": {"mem_mb": evaluate}}


def machine_memory_mb() -> int:
    """Memory that jobs of this machine can share: all of it, or what its container allows."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    return int((whole if limit == "max" else min(whole, int(limit))) / MB)


def _evaluation_mb(run: RunSpec, execution: Execution) -> tuple[float, float]:
    """Float32 weights, and logits of a forward pass with their log-softmax."""
    weights = FLOAT * count_parameters(run.model, run.moe).total / MB
    return weights, 2 * FLOAT * execution.eval_batch * run.model.context * run.model.vocab_size / MB


def _common(request: Callable[[Any], JobRequest], node: Node) -> dict[str, Any]:
    """CPUs, memory and wall time; a retry asks for twice the time of the attempt before."""
    longest = int(60 * node.max_hours)
    return {
        "cpus_per_task": lambda wildcards: request(wildcards).cpus,
        "mem_mb": lambda wildcards: request(wildcards).memory_mb,
        "runtime": lambda wildcards, attempt: min(request(wildcards).minutes * 2 ** (attempt - 1), longest),
    }


def _training_memory_mb(run: RunSpec, execution: Execution) -> int:
    """Host memory of one node: its processes, what the first one reads and writes whole, the snapshot of a save."""
    processes = execution.devices // execution.nodes
    whole = 3 * FLOAT * count_parameters(run.model, run.moe).total  # weights and AdamW's two moments
    on_cpu = execution.device == "cpu"  # then a process's peak holds its snapshot
    arrays = whole + (processes * peak_memory(run, execution).peak if on_cpu else whole / execution.nodes)
    return math.ceil((1e9 * HOST_GB * processes + MEMORY_SAFETY * arrays) / MB)
