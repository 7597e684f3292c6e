"""A small study of the paper's kind, several sizes and mixtures, whose losses follow the paper's laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upcycle.decisions.simulated import World, paper_world, simulate_losses
from upcycle.laws.tables.losses import write_losses
from upcycle.paper.inputs import Inputs
from upcycle.study.plan import build_plan
from upcycle.study.study import StudyConfig
from upcycle.workflow.dag import Workflow
from upcycle.workflow.make import make_fit, paper_inputs
from upcycle.workflow.rehearsal import planned_losses

NOISE = 0.0005
BUDGETS = [576_716_800, 1_153_433_600, 2_306_867_200, 4_613_734_400]
SETTINGS = {"warmup_steps": 200, "batch": 512, "lr_moe": 2e-3}
MODELS = {
    "15M": {"n_layer": 9, "d_model": 320, "n_head": 4, "lr": 8e-3, **SETTINGS},
    "44M": {"n_layer": 12, "d_model": 480, "n_head": 8, "lr": 4e-3, **SETTINGS},
    "0.1B": {"n_layer": 15, "d_model": 640, "n_head": 8, "lr": 4e-3, **SETTINGS},
    "0.2B": {"n_layer": 21, "d_model": 832, "n_head": 8, "lr": 2e-3, **SETTINGS},
}
MOES = {
    f"{n_expert}x{top_k}": {"n_expert": n_expert, "top_k": top_k, **({"gate": "softmax_topk"} if top_k == 1 else {})}
    for n_expert in (4, 8, 16)
    for top_k in (1, 2, 4)
}
TWO_BUDGETS = {"dense_tokens": BUDGETS, "tokens": BUDGETS}
STUDY: dict[str, Any] = {
    "study": "small-paper",
    "data": {"dataset": "english", "vocab_size": 32_000},
    "context": 1024,
    "dtype": "bfloat16",
    "execution": {"device": "cpu"},
    "models": MODELS,
    "moes": MOES,
    "sweeps": {
        "dense": {"kind": "dense", "model": list(MODELS), "tokens": BUDGETS},
        "moe": {"kind": "moe", "model": list(MODELS), "moe": "8x2", "tokens": BUDGETS},
        "upcycled": {"kind": "upcycled", "model": list(MODELS), "moe": "8x2", **TWO_BUDGETS},
        "architectures": {"kind": "upcycled", "model": "0.1B", "moe": ["4x1", "4x2", "8x1", "8x2"], **TWO_BUDGETS},
        "configuration": {
            "kind": "upcycled",
            "model": list(MODELS),
            "moe": list(MOES),
            "dense_tokens": BUDGETS[2],
            "tokens": BUDGETS[2],
        },
        "auxiliary": {
            "kind": "upcycled",
            "model": "0.1B",
            "moe": "8x2",
            "dense_steps": 4000,
            "steps": 4000,
            "set": {"moe.aux_coef": [1, 1e-3]},
        },
    },
    "fits": {
        "scratch": {"law": "chinchilla", "sweep": ["dense", "moe"], "by": "lineage", "shared": ["E"]},
        "joint": {"law": "joint", "sweep": "upcycled", "floor_from": ["dense", "moe"]},
        "configuration": {"law": "configuration", "sweep": "configuration"},
    },
}


def workflow(out: Path, **changes: Any) -> Workflow:
    """The study above, whole sections replaced by `changes`, with its plan."""
    study = StudyConfig.model_validate({**STUDY, **changes})
    return Workflow(study, build_plan(study, Path("nowhere")), out)


def write_study(out: Path, world: World | None = None, *, noise: float = NOISE, **changes: Any) -> Inputs:
    """Losses and fits of the simulated study, as figures and tables read them, without Snakemake and without runs."""
    flow = workflow(out, **changes)
    losses = simulate_losses(planned_losses(flow.plan), world or paper_world(), noise=noise, seed=0)
    write_losses(losses, out / "losses.csv")
    for name in flow.study.fits:
        make_fit(flow, name, out / "fits" / f"{name}.json")
    return paper_inputs(flow)


def read_study(out: Path) -> Inputs:
    """What `write_study(out)` wrote."""
    return paper_inputs(workflow(out))
