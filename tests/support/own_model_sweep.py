"""A study of an imported dense model whose losses follow known laws in D2, as the workflow would leave it.

One checkpoint (D1 = 2e12, of text that nobody has), upcycled and trained on at a few budgets with two seeds. The runs
are real specifications; only the losses are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import simulated_sweep

from upcycle.laws.fit import run_fit
from upcycle.laws.tables.losses import collect_losses, write_losses
from upcycle.paper.inputs import Inputs
from upcycle.study.plan import Plan
from upcycle.study.shape import ModelSpec, MoESpec
from upcycle.study.spec import DataSpec, OptimSpec, Recipe, RunSpec, ScheduleSpec
from upcycle.study.sweep import finished_run, trunk_point

D1 = 2_000_000_000_000
SHAPE = {"n_layer": 4, "d_model": 64, "n_head": 4, "n_kv_head": 2, "d_mlp": 176, "vocab_size": 1024, "context": 256}
TOKENS_A_STEP = 8 * 256
STEPS = (8, 16, 32, 64)
"""Budgets of both sweeps; the dense model has one more, which the FLOPs of the largest mixture pay for."""
SEEDS = (0, 1)
NOISE = 0.002
PARENT_LOSS = 2.95
UPCYCLED = {"A": 1.05, "alpha": 0.10, "E": 2.55}
CONTINUED = {"A": 0.90, "alpha": 0.12, "E": 2.60}
MIXTURE = MoESpec(n_expert=8, top_k=2)
FITS: dict[str, dict[str, Any]] = {
    "in_d2": {"law": "power", "select": {"sweep": ["upcycled", "continued"]}, "by": "lineage", "shared": ["E"]},
}


def law(values: dict[str, float], tokens: float) -> float:
    """A D2^-alpha + E."""
    return values["A"] * tokens ** -values["alpha"] + values["E"]


def true_loss(run: RunSpec) -> float:
    """The loss of a finished run without noise."""
    if run.role == "imported":
        return PARENT_LOSS
    return law(UPCYCLED if run.lineage == "up" else CONTINUED, run.tokens)


def recipe(**changes: Any) -> Recipe:
    """What all runs have in common; the checkpoint's own recipe without changes."""
    fields: dict[str, Any] = {
        "model": ModelSpec(**SHAPE),
        "data": DataSpec(dataset="english", vocab_size=1024, repeat=True),
        "optim": OptimSpec(lr=3e-4, batch=8),
        "schedule": ScheduleSpec(warmup_steps=2),
        "dense_tokens": D1,
        "origin": "checkpoint",
        "checkpoint": "ab" * 32,
    }
    return Recipe.model_validate(fields | changes)


def plan_of(
    mixtures: dict[str, MoESpec] | None = None,
    *,
    steps: Sequence[int] = STEPS,
    seeds: Sequence[int] = SEEDS,
    continued: bool = True,
) -> Plan:
    """The imported checkpoint, its mixtures and, if wanted, its continuations."""
    parent = RunSpec(**dict(recipe()), role="imported", end_step=0)
    later = {"checkpoint": None, "dense_parent": parent.id}
    runs, names, sweeps = {parent.id: parent}, {parent.id: ("mine", "")}, {}
    arms: list[tuple[str, str, dict[str, Any], Sequence[int]]] = []
    if continued:
        arms.append(("continued", "", {"origin": "continued"}, (*steps, 2 * steps[-1])))
    for moe, mixture in (mixtures or {"8x2": MIXTURE}).items():
        arms.append(("upcycled", moe, {"origin": "upcycle:copy", "moe": mixture}, steps))
    for sweep, moe, origin, budgets in arms:
        for seed in seeds:
            data = DataSpec(dataset="english", vocab_size=1024, repeat=True, seed=seed)
            for count in budgets:
                goal = finished_run(recipe(**later, **origin, seed=seed, data=data), count, 0.25, sweep)
                trunk = trunk_point({name: getattr(goal, name) for name in Recipe.model_fields}, goal.start_step)
                for run in (trunk, goal):
                    runs[run.id], names[run.id] = run, ("mine", moe)
                sweeps.setdefault(sweep, []).append(goal.id)
    return Plan("mine", runs, sweeps, names)


def write_results(
    results: Path, *, plan: Plan | None = None, fits: Mapping[str, Mapping[str, Any]] = FITS, noise: float = NOISE
) -> Plan:
    """Run folders, losses.csv and fits of the study."""
    plan = plan or plan_of()
    simulated_sweep.write_runs(plan, results)
    for run_id, run in plan.runs.items():
        path = results / "runs" / run_id / "metrics.json"
        draw = float(np.random.default_rng(int(run_id[-8:], 16)).standard_normal())
        changed = {"loss": true_loss(run) + (noise * draw if run.role != "imported" else 0.0)}
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    rows = collect_losses([results / "runs" / run_id for run_id in plan.finished_models], plan.membership(), plan.names)
    write_losses(rows, results / "losses.csv")
    for name, settings in fits.items():
        run_fit(results / "losses.csv", out=results / "fits" / f"{name}.json", **settings)
    return plan


def read_inputs(results: Path, plan: Plan) -> Inputs:
    """What figures, tables, report and advice read."""
    return Inputs.read(results / "losses.csv", results / "fits", results / "runs", sweeps=plan.sweeps)
