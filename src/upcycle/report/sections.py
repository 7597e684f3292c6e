"""What was run, on what, how long, on which text; what upcycling did to the weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from upcycle.paper.inputs import Grid, Inputs
from upcycle.paper.render import number
from upcycle.report.background import Background
from upcycle.report.limits import span
from upcycle.study.spec import short_count

KINDS = {"dense": "dense", "moe": "MoE from scratch", "up": "upcycled", "cont": "dense, trained on"}
"""Lineages in words."""


def scope(inputs: Inputs, background: Background, grid: Grid) -> dict[str, Any]:
    """The sweep in a few numbers, for the head of the page."""
    first, imported = grid.rows.iloc[0], inputs.imported(grid)
    planned = {run_id for ids in inputs.sweeps.values() for run_id in ids}
    return {
        "finished": len(inputs.losses),
        "planned": len(planned) or len(inputs.losses),
        "runs": background.total_runs,
        "grid": f"{len(grid.D1)} × {len(grid.D2)}",
        "N1": short_count(first["N1"]),
        "N_total": short_count(first["N_total"]),
        "mixture": f"{grid.shape[0]} experts, {grid.shape[1]} active",
        "budgets": f"{span(sorted([*([] if imported else grid.D1), *grid.D2]))} tokens"
        + (", D1 as stated by its owner" if imported else ""),
        "seeds": int(inputs.losses["seed"].nunique()),
    }


def what_was_run(inputs: Inputs, background: Background) -> dict[str, Any]:
    """Sweeps, machines, software and times, from the run folders; of losses without such folders the sweeps alone."""
    sweeps = {"sweeps": [_sweep(inputs, name) for name in inputs.sweep_names()]}
    if inputs.mark:
        return sweeps
    records = [inputs.record(run_id, "metrics") for run_id in all_runs(inputs)]
    hardware = Counter(_machine(record["hardware"]) for record in records)
    software = {f"{name} {version}" for record in records for name, version in record["software"].items()}
    return sweeps | {
        "runs": len(records),
        "tokens": short_count(sum(record["segment_tokens"] for record in records)),
        "flops": number(sum(record["flops"] for record in records), 2),
        "machines": [{"name": name, "runs": count} for name, count in hardware.most_common()],
        "software": sorted(software),
        "threads": sorted({record["execution"]["threads"] for record in records}),
        "first": _moment(min(record["started"] for record in records)),
        "last": _moment(max(record["finished"] for record in records)),
        **{key: sum(record[f"{key}_seconds"] for record in records) for key in ("train", "eval", "startup", "wall")},
        "resumed": sum(record["resumed"] > 0 for record in records),
        "timing": background.timing,
    }


def all_runs(inputs: Inputs) -> list[str]:
    """Ids of the finished models and of every run that led to one, trunk points and dense parents included."""
    found: dict[str, None] = {}
    stack = list(inputs.losses["id"])
    while stack:
        run_id = stack.pop()
        if run_id not in found:
            found[run_id] = None
            parent = inputs.record(run_id, "spec")["parent"]
            stack += [parent] if parent else []
    return list(found)


def _sweep(inputs: Inputs, name: str) -> dict[str, Any]:
    rows = inputs.in_sweep(name)
    return {
        "name": name,
        "kinds": ", ".join(KINDS[kind] for kind in rows["lineage"].unique()),
        "models": ", ".join(sorted({f"{row.model} {row.moe}".strip() for row in rows.itertuples()})),
        "finished": len(rows),
        "planned": len(inputs.sweeps.get(name, ())) or len(rows),
        "D1": span(sorted(later)) if len(later := rows.loc[rows["lineage"].isin(("up", "cont")), "D1"]) else "",
        "D": span(sorted(rows["D"])),
        "seeds": ", ".join(str(int(seed)) for seed in sorted(rows["seed"].dropna().unique())),
    }


def _moment(iso: str) -> str:
    """`2026-01-31 15:04 UTC`."""
    return datetime.fromisoformat(iso).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _machine(hardware: Mapping[str, Any]) -> str:
    if hardware["device"] == "cuda":
        return f"{hardware['gpus']} × {hardware['gpu']}, {hardware['cpu']}"
    return f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['capability']}"


def receipts(inputs: Inputs) -> dict[str, Any] | None:
    """What the method did at the start of each upcycled training; None where none was measured."""
    if inputs.mark:
        return None
    upcycled = inputs.losses.loc[inputs.losses["lineage"] == "up", "id"]
    starts = dict.fromkeys(inputs.chain(run_id)[0] for run_id in upcycled)
    found = [inputs.record(run_id, "receipt") for run_id in starts]
    if not found:
        return None
    kinds: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for receipt in found:
        parameters = receipt.get("parameters", {})  # receipts of before methods had any lack them
        shape = {name: receipt[name] for name in ("granularity", "shared_expert") if name in receipt}
        if shape != {"granularity": 1, "shared_expert": 0}:
            parameters = shape | parameters
        own = ", ".join(f"{name} {value}" for name, value in parameters.items())
        kind = (own, *(receipt[name] for name in ("method", "n_expert", "top_k", "gate")))
        kinds.setdefault(kind, []).append(receipt)
    return {
        "starts": len(found),
        "kinds": [
            {
                "first": group[0],
                "parameters": parameters,
                "starts": len(group),
                "worst": max(group, key=lambda receipt: receipt["logit_gap"] / receipt["logit_gap_bound"]),
                "before": max(receipt["router_gradient"]["step_0"]["share"] for receipt in group),
                "after": min(receipt["router_gradient"]["step_1"]["share"] for receipt in group),
            }
            for (parameters, *_), group in kinds.items()
        ],
    }
