"""A small sweep whose losses follow known laws, as the workflow would leave it: losses.csv, run folders, fits.

The grid is that of a real plan; only the losses are drawn (Equation 8 for upcycled models, power laws for the
others, normal noise), so every number that figures, tables and report show can be checked.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from upcycle.counting import count_parameters, flops_6nd, n1, n2, n_total
from upcycle.plan import Plan, build_plan
from upcycle.spec import RunSpec
from upcycle.study import StudyConfig

BUDGETS = [262_144 * 2**k for k in range(5)]
LAW = {"ln A": 11.7234, "alpha1": 0.68867, "alpha2": 0.71193, "alpha3": 0.04439, "E": 1.0}
"""Equation 8 as fitted to a trial sweep, with E set to 1."""
NOISE = 0.004
STUDY = {
    "study": "default",
    "data": {"dataset": "english", "vocab_size": 1024},
    "context": 256,
    "execution": {"device": "cpu"},
    "models": {"tiny": {"n_layer": 2, "d_model": 64, "n_head": 2, "batch": 8, "warmup_steps": 10, "lr": 8e-3, "lr_moe": 4e-3}},
    "moes": {"8x2": {"n_expert": 8, "top_k": 2}},
    "sweeps": {
        "dense": {"kind": "dense", "model": "tiny", "tokens": BUDGETS},
        "moe": {"kind": "moe", "model": "tiny", "moe": "8x2", "tokens": BUDGETS},
        "upcycled": {"kind": "upcycled", "model": "tiny", "moe": "8x2", "tokens": BUDGETS, "dense_tokens": BUDGETS},
        "seeds": {
            "kind": "upcycled",
            "model": "tiny",
            "moe": "8x2",
            "points": [[BUDGETS[1], BUDGETS[1]], [BUDGETS[2], BUDGETS[3]], [BUDGETS[3], BUDGETS[2]]],
            "seed": [0, 1, 2],
        },
    },
}


def expected_loss(run: RunSpec, tokens: float | None = None) -> float:
    """The loss of a finished model without noise."""
    D = float(tokens or run.tokens)
    if run.lineage == "dense":
        return math.exp(3.061) * D**-0.1495 + 1.0
    if run.lineage == "moe":
        return math.exp(3.5138) * D**-0.1829 + 1.0
    power = -LAW["alpha2"] + LAW["alpha3"] * math.log(run.dense_tokens)
    return math.exp(LAW["ln A"]) * run.dense_tokens ** -LAW["alpha1"] * D**power + LAW["E"]


def noisy_loss(run: RunSpec, noise: float) -> float:
    """The same with noise that depends on the run's id alone."""
    return expected_loss(run) + noise * float(np.random.default_rng(zlib.crc32(run.id.encode())).standard_normal())


def metrics(run: RunSpec, noise: float) -> dict[str, Any]:
    """metrics.json of a finished run, as the training process writes it."""
    seconds = run.segment_tokens / 30_000
    start = run.start_step * run.tokens_per_step
    points = sorted({start, run.tokens, *(2**k for k in range(12, 23) if start < 2**k < run.tokens)})
    return {
        "id": run.id,
        "loss": noisy_loss(run, noise),
        "loss_se": 0.011,
        "tokens": run.tokens,
        "wall_seconds": seconds + 2,
        "startup_seconds": 2.0,
        "train_seconds": 0.9 * seconds,
        "eval_seconds": 0.1 * seconds,
        "tokens_per_second": 30_000.0,
        "flops_6nd": flops_6nd(run),
        "hardware": {"device": "cpu", "cpu": "Example CPU 3000", "capability": "AVX512", "cores": 2},
        "software": {"upcycle": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6", "system": "Linux"},
        "execution": {"device": "cpu", "threads": 1},
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "tokens_fingerprint": "0123456789abcdef",
        "curve_heldout": [[point, curve_loss(run, point)] for point in points],
        "resumed": 0,
    }


def curve_loss(run: RunSpec, tokens: int) -> float:
    """Held-out loss along a trunk: above the finished one; an upcycled start re-warms from its dense parent's loss."""
    lead = 0.05 if run.role == "trunk" else 0.05 * (run.tokens - tokens) / run.segment_tokens
    if run.lineage != "up":
        return expected_loss(run, tokens + 60_000) + lead
    dense = math.exp(3.061) * run.dense_tokens**-0.1495 + 1.0
    shape = math.exp(-tokens / 2e4)
    rewarming = 0.12 * math.sqrt(tokens / 2e4) * math.exp(-tokens / 4e4)
    return shape * dense + (1 - shape) * (expected_loss(run, tokens + 60_000) + lead) + rewarming


def row(run: RunSpec, sweeps: list[str], names: tuple[str, str], noise: float, simulated: int) -> dict[str, Any]:
    """A row of losses.csv."""
    up = run.lineage == "up"
    counts = count_parameters(run.model, run.moe)
    return {
        "id": run.id,
        "sweeps": ";".join(sweeps),
        "model": names[0],
        "moe": names[1],
        "lineage": run.lineage,
        "role": run.role,
        "n_layer": run.model.n_layer,
        "d_model": run.model.d_model,
        "n_expert": run.moe.n_expert if run.moe else 1,
        "top_k": run.moe.top_k if run.moe else 1,
        "gate": run.moe.gate if run.moe else "",
        "N1": n1(run.model),
        "N2": n2(run.model, run.moe) if run.moe else n1(run.model),
        "N_total": n_total(run.model, run.moe) if run.moe else n1(run.model),
        "N_dense_exact": counts.non_embedding,
        "D": run.tokens,
        "D1": run.dense_tokens,
        "D2": run.tokens if up else 0,
        "seed": run.seed,
        "method": run.origin.partition(":")[2] if up else "",
        "schedule": run.schedule.kind,
        "loss": noisy_loss(run, noise),
        "loss_se": 0.011,
        "flops_6nd": flops_6nd(run),
        "wall_seconds": metrics(run, noise)["wall_seconds"],
        "tokens_per_second": 30_000.0,
        "device": "cpu",
        "simulated": simulated,
    }


def plan_of(changes: dict[str, Any] | None = None) -> Plan:
    """The plan of the study above, whole sections replaced by `changes`."""
    return build_plan(StudyConfig.model_validate({**STUDY, **(changes or {})}), Path("nowhere"))


def write_losses(plan: Plan, path: Path, *, noise: float = NOISE, simulated: int = 0) -> Path:
    """losses.csv of every finished model of the plan."""
    rows = [
        row(plan.runs[run_id], sweeps, plan.names[run_id], noise, simulated)
        for run_id, sweeps in plan.membership().items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def write_runs(plan: Plan, folder: Path, *, noise: float = NOISE) -> Path:
    """A run folder for every run of the plan."""
    for run_id, run in plan.runs.items():
        (folder / run_id).mkdir(parents=True)
        (folder / run_id / "spec.json").write_text(json.dumps({**run.model_dump(mode="json"), "id": run_id}))
        (folder / run_id / "metrics.json").write_text(json.dumps(metrics(run, noise)))
    return folder
