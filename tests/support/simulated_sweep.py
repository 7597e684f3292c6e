"""A small sweep whose losses follow known laws, as the workflow would leave it: losses.csv, run folders, fits.

The grid is that of a real plan; only the losses are drawn (Equation 8 for upcycled models, power laws for the
others, normal noise), so every number that figures, tables and report show can be checked.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upcycle.laws.fit import run_fit
from upcycle.laws.tables.losses import collect_losses, write_losses
from upcycle.paper.inputs import Inputs
from upcycle.study.counting import flops_6nd, flops_per_token
from upcycle.study.plan import Plan, build_plan
from upcycle.study.spec import RunSpec
from upcycle.study.study import StudyConfig

BUDGETS = [262_144 * 2**k for k in range(5)]
LAW = {"ln A": 11.7234, "alpha1": 0.68867, "alpha2": 0.71193, "alpha3": 0.04439, "E": 1.0}
"""Equation 8 as fitted to a trial sweep, with E set to 1."""
NOISE = 0.004
STUDY = {
    "study": "default",
    "data": {"dataset": "english", "vocab_size": 1024},
    "context": 256,
    "execution": {"device": "cpu"},
    "models": {
        "tiny": {"n_layer": 2, "d_model": 64, "n_head": 2, "batch": 8, "warmup_steps": 10, "lr": 8e-3, "lr_moe": 4e-3}
    },
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


FITS: dict[str, dict[str, Any]] = {
    "multiplicative": {"law": "multiplicative"},
    "multiplicative_no_interaction": {"law": "multiplicative_no_interaction"},
    "additive": {"law": "additive"},
    "additive_no_interaction": {"law": "additive_no_interaction"},
    "power_by_D1": {"law": "power", "by": "D1", "fixed": {"E": 1.0}},
}
RECEIPT = {
    "method": "copy",
    "n_expert": 8,
    "top_k": 2,
    "gate": "topk_softmax",
    "logit_gap": 2.4e-6,
    "logit_gap_zero_in_theory": True,
    "logit_gap_bound": 1e-5,
    "router_gradient": {"step_0": {"share": 3e-9}, "step_1": {"share": 2e-3}},
    "statement": "The dense function is preserved: the largest logit gap is 2.4e-06.",
}
PART = {"documents": 9_000, "bytes": 12_000_000, "tokens": 5_600_000}
MANIFEST = {
    "dataset": "english",
    "version": "1",
    "description": "Encyclopaedia leads, country facts and recipes",
    "fingerprint": "0123456789abcdef",
    "vocab_size": 1024,
    "tokenizer": {"origin": "trained on the training part"},
    "parts": {
        "train": {**PART, "by_source": {"wiki": PART}},
        "heldout": {"documents": 120, "bytes": 160_000, "tokens": 72_000, "by_source": {}},
    },
    "sources": [
        {"name": "wiki", "description": "Leads of articles", "licence": "CC BY-SA 4.0", "package": "p", "version": "1"}
    ],
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
        "steps": run.end_step,
        "segment_tokens": run.segment_tokens,
        "flops": flops_per_token(run.model, run.moe) * run.segment_tokens,
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
        "software": {
            "upcycle": "0.1.0",
            "python": "3.11.7",
            "torch": "2.13.0+cpu",
            "numpy": "2.4.6",
            "system": "Linux",
        },
        "execution": {
            "device": "cpu",
            "devices": 1,
            "threads": 1,
            "kernels": {"layers": "native", "torch": "2.13.0+cpu"},
        },
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "tokens_fingerprint": "0123456789abcdef",
        "curve_heldout": [[point, curve_loss(run, point)] for point in points if run.segment_tokens],
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


def plan_of(changes: dict[str, Any] | None = None) -> Plan:
    """The plan of the study above, whole sections replaced by `changes`."""
    return build_plan(StudyConfig.model_validate({**STUDY, **(changes or {})}), Path("nowhere"))


def write_runs(plan: Plan, results: Path, *, noise: float = NOISE) -> None:
    """A folder for every run of the plan, and the manifest of their tokens."""
    for run_id, run in plan.runs.items():
        folder = results / "runs" / run_id
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text(json.dumps({**run.model_dump(mode="json"), "id": run_id}))
        (folder / "metrics.json").write_text(json.dumps(metrics(run, noise)))
        if run.lineage == "up" and run.start_step == 0:
            (folder / "receipt.json").write_text(json.dumps(RECEIPT))
    tokens = results / "tokens" / "english-1-bpe1024"
    tokens.mkdir(parents=True)
    (tokens / "manifest.json").write_text(json.dumps(MANIFEST))


def write_results(
    results: Path, *, fits: Sequence[str] = tuple(FITS), noise: float = NOISE, simulated: int = 0, **changes: Any
) -> Plan:
    """Everything up to the fits, in a results folder; `changes` replaces sections of the study."""
    plan = plan_of(changes)
    write_runs(plan, results, noise=noise)
    rows = collect_losses([results / "runs" / run_id for run_id in plan.finished_models], plan.membership(), plan.names)
    write_losses(rows.assign(simulated=simulated), results / "losses.csv")
    for name in fits:
        run_fit(
            results / "losses.csv", select={"sweep": "upcycled"}, out=results / "fits" / f"{name}.json", **FITS[name]
        )
    return plan


def read_inputs(results: Path, plan: Plan) -> Inputs:
    """The paper layer's inputs from a results folder."""
    return Inputs.read(results / "losses.csv", results / "fits", results / "runs", sweeps=plan.sweeps)
