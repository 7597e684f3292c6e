"""A small study of upcycling methods whose losses differ by known amounts, with curves of their routers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import simulated_sweep
from simulated_sweep import BUDGETS

from upcycle.laws.tables.losses import collect_losses, write_losses
from upcycle.paper.inputs import Inputs
from upcycle.study.spec import RunSpec

UPCYCLED = {"kind": "upcycled", "model": "tiny", "moe": "8x2"}
ENDS = {"dense_tokens": [BUDGETS[0], BUDGETS[3]], "tokens": BUDGETS[1:4], "seed": [0, 1, 2]}
GRID = {"dense_tokens": BUDGETS[:4], "tokens": BUDGETS[:4]}
SWEEPS: dict[str, dict[str, Any]] = {
    "methods": {**UPCYCLED, **ENDS, "method": ["copy", "noise", "drop", "reinit"]},
    "grid": {**UPCYCLED, **GRID, "method": ["copy", "drop"]},
}
EFFECTS = {"drop": -0.03, "reinit": 0.03}
"""Nats by method; noise does nothing."""
NOISE = 0.002
SEED_EFFECT = 0.02
"""Nats that a seed adds to the losses of every method: pairing takes them out."""


def write_results(results: Path) -> None:
    """Run folders with curves, and losses.csv."""
    plan = simulated_sweep.plan_of({"sweeps": SWEEPS})
    simulated_sweep.write_runs(plan, results)
    rng = np.random.default_rng(0)
    for run_id, run in plan.runs.items():
        folder = results / "runs" / run_id
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["loss"] = simulated_sweep.expected_loss(run) + EFFECTS.get(run.method, 0.0)
        metrics["loss"] += SEED_EFFECT * run.seed + NOISE * float(rng.standard_normal())
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of_curve(run)))
    rows = collect_losses([results / "runs" / run_id for run_id in plan.finished_models], plan.membership(), plan.names)
    write_losses(rows, results / "losses.csv")


def read_inputs(results: Path) -> Inputs:
    """What `write_results` wrote, as figures read it."""
    return simulated_sweep.read_inputs(results, simulated_sweep.plan_of({"sweeps": SWEEPS}))


def rows_of_curve(run: RunSpec) -> list[dict[str, Any]]:
    """Entropy falls to half of its maximum, one expert of 16 dies with `reinit`, experts move apart."""
    rows: list[dict[str, Any]] = []
    for step in range(run.start_step + 10, run.end_step + 1, 10):
        row: dict[str, Any] = {"step": step, "tokens": step * run.tokens_per_step, "loss": 4.0}
        if run.moe is not None:
            apart = math.exp(-step / 100)
            row["entropy"] = [math.log(8) * (0.5 + 0.5 * apart)] * 2
            row["dead"] = int(run.method == "reinit")
        rows.append(row)
        if run.moe is not None and step % 40 == 0:
            start = {"drop": 0.7, "reinit": 1.0}.get(run.method, 0.0)
            rows.append({**row, "heldout": 4.0, "expert_distance": [start, start + 0.5 * (1 - apart)]})
            del rows[-1]["entropy"], rows[-1]["dead"]
    return rows
