"""What is still to be submitted to a cluster, and whether SLURM would take it, asked before the first job."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from itertools import chain
from typing import Any

from upcycle.errors import UserError
from upcycle.study.recorded import is_finished
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import RESULTS, on_disk, step_path
from upcycle.workflow.resources import Cluster, JobRequest
from upcycle.workflow.texts import stages_of, tokens_to_make

RULE_OF_KIND = {
    "import": "import_checkpoint",
    "dense": "pretrain_dense",
    "moe": "pretrain_moe",
    "up": "upcycle",
    "cont": "continue_dense",
    "decay": "decay",
}
"""The rule that trains a kind of run."""
PRODUCT_RULES = "fit, figure, table, report"
RULE_ORDER = ("tokenize_step", "tokenize", *RULE_OF_KIND.values(), "evaluate", "benchmark", PRODUCT_RULES)
OPTIONS = {"slurm_partition": "partition", "slurm_account": "account", "qos": "qos", "constraint": "constraint"}
"""sbatch's options by the default resources that a profile may set."""
ANSWER_SECONDS = 60
"""How long sbatch may take to say whether it would take a job."""


def pending_requests(workflow: Workflow) -> dict[tuple[str, str], list[JobRequest]]:
    """Requests of the jobs that are still to be done, by rule and model, in the order of the workflow.

    Raises UserError naming the setting if a job does not fit a node of the profile.
    """
    assert workflow.node is not None
    cluster = Cluster(workflow, workflow.node)
    groups: dict[tuple[str, str], list[JobRequest]] = {}

    def add(rule: str, request: JobRequest, run_id: str = "") -> None:
        model, _ = workflow.plan.names.get(run_id, ("", ""))
        groups.setdefault((rule, model), []).append(request)

    for name in tokens_to_make(workflow):
        for step in chain(*stages_of(workflow, name)):
            if not on_disk(step_path(name, step)):
                add("tokenize_step", cluster.tokenize_step(name, step))
        add("tokenize", cluster.tokenize(name))
    for run_id, run in workflow.plan.runs.items():
        if not is_finished(RESULTS / "runs" / run_id):
            add(RULE_OF_KIND[run.kind], cluster.train(run_id), run_id)
    for pairs in workflow.evaluations.values():
        for run_id, path in pairs:
            if path in workflow.stale_evaluations:
                add("evaluate", cluster.evaluate(run_id), run_id)
    for asked in workflow.benchmarks.values():
        for run_id, _, path in asked:
            if path in workflow.stale_benchmarks:
                add("benchmark", cluster.evaluate(run_id), run_id)
    for name in workflow.stale:
        if name.partition("/")[0] in ("fits", "figures", "tables", "report"):
            add(PRODUCT_RULES, cluster.small())
    return dict(sorted(groups.items(), key=lambda group: RULE_ORDER.index(group[0][0])))


def check_submission(workflow: Workflow, common: Mapping[str, Any]) -> None:
    """Raise UserError if SLURM would not take one of the jobs: partition, account, GPUs, memory, wall time.

    `common`: Snakemake's default resources. `sbatch --test-only` is asked for each request that differs, and submits
    nothing.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            "no `sbatch` here: call Snakemake on a node that submits SLURM jobs, or without --profile slurm"
        )
    assert workflow.node is not None
    kind = f"gpu:{workflow.node.gpu_type}" if workflow.node.gpu_type else "gpu"
    where = [f"--{option}={common[name]}" for name, option in OPTIONS.items() if common.get(name)]
    asked = {request: key for key, requests in pending_requests(workflow).items() for request in requests}
    for request, (rule, model) in asked.items():
        sizes = [f"--nodes={request.nodes}", f"--cpus-per-task={request.cpus}", f"--mem={request.memory_mb}"]
        sizes += [f"--time={request.minutes}", *([f"--gres={kind}:{request.gpus}"] if request.gpus else [])]
        command = ["sbatch", "--test-only", *where, *sizes, "--wrap=true"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
            said = done.stderr.strip().splitlines() if done.returncode else []
        except subprocess.TimeoutExpired:
            said = [f"no answer within {ANSWER_SECONDS} s"]
        if said:
            raise UserError(
                f"SLURM would not take a job of {' '.join(filter(None, (rule, model)))} (`{' '.join(command)}`): "
                f"{said[-1]}. Set slurm_partition and slurm_account in the profile's config.yaml, and what a node "
                "offers in its nodes.yaml; `sinfo` lists partitions"
            )
