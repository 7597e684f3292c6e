"""A small study of every ablation, with curves: losses are equal for all arms but for noise that a seed shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import simulated_sweep
from simulated_sweep import BUDGETS

from upcycle.laws.fit import run_fit
from upcycle.laws.tables.losses import collect_losses, write_losses
from upcycle.paper.inputs import Inputs
from upcycle.study.spec import RunSpec
from upcycle.train.schedule import learning_rate

STEPS = {"dense_tokens": BUDGETS[1], "tokens": BUDGETS[1]}
SEEDS = [0, 1, 2]
UPCYCLED = {"kind": "upcycled", "model": "tiny", "moe": "8x2"}
GRID = {**UPCYCLED, "dense_tokens": BUDGETS[:3], "tokens": BUDGETS[:3], "seed": [0, 1]}
HALF = {"data.stop": 0.5}
JAPANESE, CODE = {"data.dataset": "japanese-man"}, {"data.dataset": "python-stdlib"}
SWEEPS: dict[str, dict[str, Any]] = {
    "schedule_dense": {"kind": "dense", "model": "tiny", "tokens": BUDGETS[:2], "schedule": ["wsd", "cosine"]},
    "schedule_moe": {"kind": "moe", "model": "tiny", "moe": "8x2", "tokens": BUDGETS[1], "schedule": ["wsd", "cosine"]},
    "upcycling_lr_constant": {
        **UPCYCLED,
        **STEPS,
        "schedule": "constant",
        "set": {"optim.lr": 8e-4, "schedule.warmup_steps": 0},
    },
    "upcycling_lr": {**UPCYCLED, **STEPS, "set": {"optim.lr": [4e-3, 8e-3]}},
    "auxiliary": {**UPCYCLED, **STEPS, "set": {"moe.aux_coef": [1, 1e-3, 0]}},
    "repetition_same": {**UPCYCLED, **STEPS, "set": HALF, "dense_set": HALF},
    "repetition_disjoint": {**UPCYCLED, **STEPS, "set": {"data.start": 0.5}, "dense_set": HALF},
    "lr_dense": {"kind": "dense", "model": "tiny", "tokens": BUDGETS[0], "set": {"optim.lr": [4e-3, 8e-3, 1.6e-2]}},
    "lr_moe": {
        "kind": "moe",
        "model": "tiny",
        "moe": "8x2",
        "tokens": BUDGETS[0],
        "set": {"optim.lr": [2e-3, 4e-3, 8e-3]},
    },
    "japanese": {**GRID, "set": JAPANESE, "dense_set": JAPANESE},
    "code": {**GRID, "set": CODE, "dense_set": CODE},
}
SWEEPS = {name: {"seed": SEEDS, **sweep} for name, sweep in SWEEPS.items()}
NOISE = 0.002


def write_results(results: Path, *, sweeps: dict[str, Any] | None = None) -> None:
    """Run folders with curves, losses.csv and fits of the texts."""
    plan = simulated_sweep.plan_of({"sweeps": sweeps or SWEEPS})
    simulated_sweep.write_runs(plan, results)
    rng = np.random.default_rng(0)
    for run_id, run in plan.runs.items():
        folder = results / "runs" / run_id
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["loss"] = simulated_sweep.expected_loss(run) + NOISE * (3 * run.seed + float(rng.standard_normal()))
        (folder / "metrics.json").write_text(json.dumps(metrics))
        heldout = [{"step": 0, "tokens": tokens, "heldout": loss} for tokens, loss in metrics["curve_heldout"]]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*heldout, *updates(run)]))
    rows = collect_losses([results / "runs" / run_id for run_id in plan.finished_models], plan.membership(), plan.names)
    write_losses(rows, results / "losses.csv")
    for sweep in ("japanese", "code") if sweeps is None else ():
        for law in ("multiplicative", "multiplicative_no_interaction"):
            out = results / "fits" / f"{law}_{sweep}.json"
            run_fit(results / "losses.csv", law=law, select={"sweep": [sweep]}, out=out)


def updates(run: RunSpec) -> list[dict[str, Any]]:
    """Rows of updates; the balance loss falls from 2 a layer, the further the larger its coefficient."""
    rows = []
    for step in range(run.start_step + 10, run.end_step + 1, 10):
        row = {"step": step, "tokens": step * run.tokens_per_step, "lr": learning_rate(run, step - 1), "loss": 4.0}
        if run.moe is not None:
            excess = np.exp(-step / 30) + 0.3 / (1 + 3e3 * run.moe.aux_coef)
            row["balance"] = run.model.n_layer * (1 + excess)
        rows.append(row)
    return rows


def read_inputs(results: Path) -> Inputs:
    """What `write_results` wrote, as figures read it."""
    return simulated_sweep.read_inputs(results, simulated_sweep.plan_of({"sweeps": SWEEPS}))
