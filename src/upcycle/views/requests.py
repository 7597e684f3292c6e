"""What the jobs that are still to be done ask a cluster for, by rule and model: a table of `upcycle plan`."""

from __future__ import annotations

from upcycle.study.values import duration
from upcycle.views.text import text_table
from upcycle.workflow.dag import Workflow
from upcycle.workflow.resources import JobRequest
from upcycle.workflow.submission import pending_requests


def show_requests(workflow: Workflow) -> str:
    """A line for each rule and model: how many jobs, and the largest request for each resource.

    Raises UserError naming the setting if a job does not fit a node of the profile.
    """
    groups = pending_requests(workflow)
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
        for (rule, model), requests in groups.items()
    ]
    if not rows:
        return "Nothing is left to be submitted."
    head = "Jobs to submit, and the most that one of them asks for; GPUs, CPUs and memory are of each node:"
    return "\n".join([head, *text_table(rows, left=["rule", "model"])])


def _most(requests: list[JobRequest], field: str) -> str:
    return f"{max(getattr(request, field) for request in requests):,}"
