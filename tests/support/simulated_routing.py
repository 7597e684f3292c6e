"""A small study of routing, with curves and receipts: losses are equal for all but noise that a seed shares."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import simulated_sweep

from upcycle.laws.tables.losses import collect_losses, write_losses
from upcycle.paper.inputs import Inputs
from upcycle.study.plan import Plan
from upcycle.study.spec import RunSpec

EXPERTS = (4, 8, 16)
MOES = {
    f"{n}x{k}": {"n_expert": n, "top_k": k, **({"gate": "topk_softmax"} if k == 1 else {})}
    for n in EXPERTS
    for k in (1, 2)
}
TOP_1, TOP_2 = ([f"{n}x{k}" for n in EXPERTS] for k in (1, 2))
UP = {"kind": "upcycled", "model": "tiny", "dense_steps": 400, "steps": 400, "seed": [0, 1, 2]}
ORDERS = {"moe.gate": ["topk_softmax", "softmax_topk"]}
BIASES = {"moe.aux_coef": 0, "moe.bias_rate": 1e-3}
SWEEPS: dict[str, dict[str, Any]] = {
    "top1": {**UP, "moe": TOP_1, "set": ORDERS},
    "top1_renormalised": {**UP, "moe": TOP_1, "seed": 0, "set": {"moe.gate": "softmax_topk_renormalised"}},
    "top2": {**UP, "moe": TOP_2},
    "top2_softmax_first": {**UP, "moe": TOP_2, "set": {"moe.gate": "softmax_topk"}},
    "scratch": {"kind": "moe", "model": "tiny", "moe": ["4x1", "16x1"], "steps": 400, "seed": [0, 1], "set": ORDERS},
    "biases": {**UP, "moe": "8x1", "set": {**ORDERS, **BIASES}},
    "biases_top2": {**UP, "moe": "8x2", "set": BIASES},
    "z_loss": {**UP, "moe": ["8x1", "8x2"], "set": {"moe.gate": "softmax_topk", "moe.z_coef": 1e-3}},
    "sigmoid": {**UP, "moe": ["8x1", "8x2"], "set": {"moe.gate": "sigmoid_topk_renormalised"}},
}
"""The sweeps that the figure takes if a study names none."""
NOISE = 0.002


def plan() -> Plan:
    """The study's plan."""
    return simulated_sweep.plan_of({"moes": MOES, "sweeps": SWEEPS})


def write_results(results: Path) -> None:
    """Run folders with curves and receipts, and losses.csv."""
    planned = plan()
    simulated_sweep.write_runs(planned, results)
    rng = np.random.default_rng(0)
    for run_id, run in planned.runs.items():
        folder = results / "runs" / run_id
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["loss"] = 4 + NOISE * (3 * run.seed + float(rng.standard_normal()))
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve(run)))
        if (folder / "receipt.json").exists() and run.moe is not None:
            share = 1e-9 if run.moe.top_k == 1 and run.moe.gate != "softmax_topk" else 0.01
            gradient = {"step_0": {"share": 1e-9}, "step_1": {"share": share}}
            receipt = {**simulated_sweep.RECEIPT, "router_gradient": gradient}
            (folder / "receipt.json").write_text(json.dumps(receipt))
    finished = [results / "runs" / run_id for run_id in planned.finished_models]
    write_losses(collect_losses(finished, planned.membership(), planned.names), results / "losses.csv")


def curve(run: RunSpec) -> list[dict[str, Any]]:
    """Rows of the curve: a loss before the first update, then routing with an expert of each layer dead."""
    if run.moe is None:
        return []
    first = [] if run.start_step else [{"step": 0, "tokens": 0, "heldout": 4 + (run.moe.gate == "softmax_topk") / 4}]
    entropy = [0.9 * math.log(run.moe.n_expert)] * run.model.n_layer
    steps = range(run.start_step + 20, run.end_step + 1, 20)
    return first + [
        {"step": step, "tokens": step * run.tokens_per_step, "dead": run.model.n_layer, "entropy": entropy}
        for step in steps
    ]


def read_inputs(results: Path) -> Inputs:
    """What `write_results` wrote, as figures read it."""
    return simulated_sweep.read_inputs(results, plan())
