"""What the jobs that are still to be done ask a cluster for, by rule and model: a table of `upcycle plan`."""

from __future__ import annotations

from upcycle.study.recorded import is_finished
from upcycle.study.values import duration
from upcycle.views.text import text_table
from upcycle.workflow.dag import Workflow
from upcycle.workflow.needs import tokens_to_make
from upcycle.workflow.paths import RESULTS
from upcycle.workflow.resources import Cluster, JobRequest

RULE_OF_KIND = {"dense": "pretrain_dense", "moe": "pretrain_moe", "up": "upcycle", "decay": "decay"}
"""The rule that trains a kind of run."""
PRODUCT_RULES = "fit, figure, table, report"
RULE_ORDER = ("tokenize", *RULE_OF_KIND.values(), "evaluate", PRODUCT_RULES)


def show_requests(workflow: Workflow) -> str:
    """A line for each rule and model: how many jobs, and the largest request for each resource.

    Raises UserError naming the setting if a job does not fit a node of the profile.
    """
    assert workflow.node is not None
    cluster = Cluster(workflow, workflow.node)
    groups: dict[tuple[str, str], list[JobRequest]] = {}
    for _ in tokens_to_make(workflow):
        groups.setdefault(("tokenize", ""), []).append(cluster.tokenize())
    for run_id, run in workflow.plan.runs.items():
        if not is_finished(RESULTS / "runs" / run_id):
            model, _ = workflow.plan.names.get(run_id, ("", ""))
            groups.setdefault((RULE_OF_KIND[run.kind], model), []).append(cluster.train(run_id))
    for pairs in workflow.evaluations.values():
        for run_id, path in pairs:
            if path in workflow.stale_evaluations:
                model, _ = workflow.plan.names.get(run_id, ("", ""))
                groups.setdefault(("evaluate", model), []).append(cluster.evaluate(run_id))
    products = [name for name, product in workflow.products.items() if product.name in workflow.stale]
    submitted = [name for name in products if name.partition("/")[0] in ("fits", "figures", "tables", "report")]
    if submitted:
        groups[PRODUCT_RULES, ""] = [cluster.small()] * len(submitted)
    rows = [
        {
            "rule": rule,
            "model": model,
            "jobs": str(len(requests)),
            "nodes": _most(requests, "nodes"),
            "GPUs": _most(requests, "gpus"),
            "CPUs": _most(requests, "cpus"),
            "memory": f"{max(request.memory_mb for request in requests) / 1000:,.0f} GB",
            "wall time": duration(60 * max(request.minutes for request in requests)),
        }
        for (rule, model), requests in sorted(groups.items(), key=lambda group: RULE_ORDER.index(group[0][0]))
    ]
    if not rows:
        return "Nothing is left to be submitted."
    head = "Jobs to submit, and the most that one of them asks for; GPUs, CPUs and memory are of each node:"
    return "\n".join([head, *text_table(rows, left=["rule", "model"])])


def _most(requests: list[JobRequest], field: str) -> str:
    return f"{max(getattr(request, field) for request in requests):,}"
