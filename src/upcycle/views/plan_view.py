"""What `upcycle plan` shows: runs, tokens, FLOPs, disk and time, what exists and what would be trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from upcycle.study.columns import value_text
from upcycle.study.counting import count_parameters, flops_6nd, flops_per_token
from upcycle.study.execution import Execution
from upcycle.study.memory import peak_memory
from upcycle.study.rates import (
    Speeds,
    expected_seconds,
    mean_overhead,
    measured_runs,
    source_of_seconds,
    speeds_by_shape,
)
from upcycle.study.recorded import is_finished
from upcycle.study.spec import short_count
from upcycle.study.study import ImportedStudy
from upcycle.study.values import duration
from upcycle.study.varying import varying, varying_by_run
from upcycle.views.before_launch import describe_launch, show_launch
from upcycle.views.text import text_bytes, text_table
from upcycle.workflow.dag import Workflow
from upcycle.workflow.paths import RESULTS

CHECKPOINT_BYTES = 4
"""Weights and each of AdamW's two moments are float32."""
OF_RUN = ("kind", "lineage", "role", "parent", "start_step", "end_step", "tokens", "dense_tokens", "segment_tokens")
"""What a plan shows of a run as it is."""
ALL = "all (runs shared)"
"""The line of totals."""


def describe_plan(workflow: Workflow, *, nodes: int | None = None, price: float | None = None) -> dict[str, Any]:
    """The plan as data: each run with its counts, cost and state, totals by sweep and in all.

    Tokens: what a run's own segment trains. Seconds: of one job, from the speed of finished runs of the same shape
    where there are any, else from `execution.expected_rate`. `peak_bytes`: the peak of one process of the job, by
    formula; `memory`: its parts (upcycle.study.memory). `varies` of a sweep: settings that differ between its models,
    with their values; of a run: its own values of these settings. `launch`: the work that is not done yet, on so many
    `nodes` and at a `price` of a GPU-hour (upcycle.views.before_launch).
    """
    measured = measured_runs(workflow.plan.runs.values(), RESULTS)
    speeds = speeds_by_shape(measured)
    settings = varying_by_run(workflow.plan)
    runs = [describe_run(workflow, run_id, speeds) | {"varies": settings[run_id]} for run_id in workflow.plan.runs]
    by_id = {run["id"]: run for run in runs}
    sweeps = {
        name: plan_totals([by_id[run_id] for run_id in workflow.plan.members(name)])
        | {"models": len(ids), "varies": varying(workflow.plan, name)}
        for name, ids in workflow.plan.sweeps.items()
    }
    launch = describe_launch(workflow, runs, mean_overhead(measured), nodes=nodes, price=price)
    return {
        "study": workflow.plan.study,
        "runs": runs,
        "sweeps": sweeps,
        "total": plan_totals(runs),
        "launch": launch,
    }


def describe_run(workflow: Workflow, run_id: str, speeds: Speeds) -> dict[str, Any]:
    """One run: identity, sizes, cost, whether it is finished."""
    run, folder = workflow.plan.runs[run_id], RESULTS / "runs" / run_id
    model, moe = workflow.plan.names.get(run_id, ("", ""))
    counts = count_parameters(run.model, run.moe)
    flops = flops_per_token(run.model, run.moe) * run.segment_tokens
    execution = workflow.study.execution_of(run)
    memory = peak_memory(run, execution)
    copies = 3 if run.role == "trunk" else 1  # weights, and a trunk point's two AdamW moments
    return {
        "id": run_id,
        **{name: getattr(run, name) for name in OF_RUN},
        "sweeps": [name for name, ids in workflow.plan.sweeps.items() if run_id in ids],
        "model": model,
        "moe": moe,
        "n_dense_or_total": counts.non_embedding,
        "n_active": counts.active,
        "flops_6nd": flops_6nd(run),
        "flops": flops,
        "bytes": copies * CHECKPOINT_BYTES * counts.total,
        "peak_bytes": round(memory.peak),
        "memory": asdict(memory),
        "seconds": expected_seconds(run, execution, speeds),
        "seconds_from": source_of_seconds(run, execution, speeds),
        "finished": is_finished(folder),
        "started": (folder / "spec.json").exists(),
    }


def plan_totals(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over runs, and over those still to train."""
    todo = [run for run in runs if not run["finished"]]
    total: dict[str, Any] = {"runs": len(runs), "finished": len(runs) - len(todo), "to_train": len(todo)}
    for key in ("segment_tokens", "flops_6nd", "flops", "bytes", "seconds"):
        total[key] = sum(run[key] for run in runs)
        total[f"{key}_to_train"] = sum(run[key] for run in todo)
    total["peak_bytes"] = max((run["peak_bytes"] for run in runs), default=0)
    return total


def of_losses(study: ImportedStudy) -> str:
    """What there is to say of a study without runs."""
    return (
        f"study {study.study}: its losses are from {', '.join(study.losses_from)}, and no run is planned.\n"
        f"`snakemake --config study={study.study}` makes its fits, figures and tables."
    )


def show_plan(
    workflow: Workflow, *, as_json: bool, every_run: bool, nodes: int | None = None, price: float | None = None
) -> str:
    """The plan for a person, or as JSON."""
    if not as_json and isinstance(workflow.study, ImportedStudy):
        return of_losses(workflow.study)
    plan = describe_plan(workflow, nodes=nodes, price=price)
    if as_json:
        return json.dumps(plan, indent=1)
    rows = [_cells(name, total) for name, total in (plan["sweeps"] | {ALL: plan["total"]}).items()]
    lines = [f"study {plan['study']}", "", *text_table(rows, left=["sweep"])]
    for name, asked in workflow.benchmarks.items():
        left = sum(path in workflow.stale_benchmarks for _, _, path in asked)
        lines += ["", f"Benchmark {name}: {left} of {len(asked)} scores left to make, one for each model and task."]
    execution = workflow.study.execution
    total = plan["total"]
    tokens, flops = total["segment_tokens_to_train"], total["flops_to_train"]
    lines += ["", *show_launch(plan["launch"], price=price, tokens=tokens, flops=flops)]
    sources = {run["seconds_from"] for run in plan["runs"] if run["kind"] != "import"}  # which trains nothing
    lines += [
        "",
        f"FLOPs: all matrix products; the paper's count by 6ND is {total['flops_6nd']:.4g}.",
        f"Job time: the sum over jobs, which run side by side{', by ' * bool(sources)}{' and '.join(sorted(sources))}.",
        "Memory: the peak of one process of the largest run, by formula"
        + ("." if execution.device == "cpu" else "; untested on CUDA."),
        *memory_warning(plan["runs"], execution),
    ]
    if every_run:
        lines += _what_varies(plan["sweeps"])
        settings = "settings that vary in a sweep"
        rows = []
        for run in plan["runs"]:
            row = {"run": run["id"], "steps": f"{run['start_step']}..{run['end_step']}"}
            row |= {"tokens": short_count(run["segment_tokens"]), "memory": text_bytes(run["peak_bytes"])}
            todo = "to import" if run["kind"] == "import" else "to train"
            row |= {"state": "finished" if run["finished"] else "started" if run["started"] else todo}
            varies = " ".join(f"{path}={value_text(value)}" for path, value in run["varies"].items())
            rows.append(row | {settings: varies})
        lines += ["", *text_table(rows, left=["run", "state", settings])]
    else:
        lines.append("One line a run: --all. As data: --json.")
    return "\n".join(lines)


def _what_varies(sweeps: dict[str, dict[str, Any]]) -> list[str]:
    """A line a sweep whose models differ in more than their ids and steps show."""
    found = {name: sweep["varies"] for name, sweep in sweeps.items() if sweep["varies"]}
    if not found:
        return []
    lines = ["", "What varies between the models of a sweep, beside what their ids and steps show:"]
    for name, settings in found.items():
        parts = [f"{path} {', '.join(map(value_text, values))}" for path, values in settings.items()]
        lines.append(f"  {name}: {'; '.join(parts)}")
    return lines


def memory_warning(runs: list[dict[str, Any]], execution: Execution) -> list[str]:
    """A warning of unfinished runs whose peak exceeds `execution.device_memory_gb`; none where that is not set."""
    limit = execution.device_memory_gb
    large = [run for run in runs if not run["finished"] and limit and run["peak_bytes"] > limit * 1e9]
    if not large:
        return []
    large.sort(key=lambda run: -run["peak_bytes"])
    named = ", ".join(f"{run['id']} ({text_bytes(run['peak_bytes'])})" for run in large[:3])
    more = f" and {len(large) - 3} more" if len(large) > 3 else ""
    return [
        "",
        f"WARNING: execution.device_memory_gb is {limit:g}; {named}{more} need more. Lower "
        "execution.micro_batch, or set activation_checkpointing: block, or give a job more devices.",
    ]


def _cells(name: str, total: dict[str, Any]) -> dict[str, str]:
    """The line of a sweep, or of all runs, which are of no number of models."""
    cells = {"sweep": name, "models": str(total.get("models", "")), "runs": str(total["runs"])}
    cells |= {"to train": str(total["to_train"]), "tokens": short_count(total["segment_tokens"])}
    cells |= {"FLOPs": f"{total['flops']:.2g}", "disk": text_bytes(total["bytes"])}
    return cells | {"job time": duration(total["seconds_to_train"]), "memory": text_bytes(total["peak_bytes"])}
