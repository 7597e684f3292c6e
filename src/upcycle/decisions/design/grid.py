"""The runs of a planned sweep: from grids in words, or from a study's plan.

D, D1 and D2 are in tokens, N1 is the dense model's size in non-embedding parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from upcycle.decisions.quantities import quantity
from upcycle.errors import UserError, nearest
from upcycle.laws.terms import Array
from upcycle.study.counting import n1
from upcycle.study.plan import Plan
from upcycle.study.spec import EXPAND, RunSpec
from upcycle.study.study import StudyConfig

Runs = Mapping[str, Array]
"""A lineage's runs as columns: D1, D2, N1 of upcycled models, D, N1 of models trained from scratch."""

PAPER_BUDGETS = "0.577e9,1.153e9,2.307e9,4.614e9,9.227e9"
"""Tokens of the paper's 0.1B model (Table 5's maximum, halved downwards: inferred)."""
PAPER_N1 = 16 * 15 * 640**2
"""Its size in the laws (Table 3 and Equation 4)."""


@dataclass(frozen=True)
class PlannedSweep:
    """The finished models that a sweep will give."""

    up: Runs
    dense: Runs
    """The dense parents, and any other dense models planned."""
    moe: Runs | None
    """MoEs from scratch; None when none are planned."""
    n_expert: int
    top_k: int
    words: str
    notes: tuple[str, ...] = ()

    @property
    def sizes(self) -> Array:
        """Dense sizes of the upcycled models, ascending."""
        return np.unique(self.up["N1"])

    @property
    def active_ratio(self) -> float:
        """N2 / N1 (Equations 4 and 5)."""
        return (4 + 12 * self.top_k) / 16

    @property
    def flops(self) -> float:
        """6 N D of all runs, each by itself: runs that branch off a shared trunk cost less."""
        total = self.dense_flops(self.dense).sum() + self.mixture_flops(self.up["N1"], self.up["D2"]).sum()
        return float(total + (0.0 if self.moe is None else self.mixture_flops(self.moe["N1"], self.moe["D"]).sum()))

    def dense_flops(self, runs: Runs) -> Array:
        """6 N1 D of dense runs."""
        return np.asarray(6.0 * runs["N1"] * runs["D"])

    def mixture_flops(self, size: Array, tokens: Array) -> Array:
        """6 N2 D of MoEs from scratch, 6 N2 D2 of upcycled ones without their dense parents."""
        return np.asarray(6.0 * self.active_ratio * size * tokens)

    def plus(self, lineage: str, runs: Runs) -> PlannedSweep:
        """The sweep with further runs of `up`, `dense` or `moe` at the end."""
        before: Runs | None = getattr(self, lineage)
        grown = {name: np.concatenate([*([before[name]] if before else []), runs[name]]) for name in runs}
        change: dict[str, Any] = {lineage: grown}
        return replace(self, **change)


def parse_numbers(text: str, option: str) -> Array:
    """Numbers of `1e9,2e9` or LOW:HIGH:COUNT (a geometric grid), or of both joined by commas; ascending, each once.

    Raises `UserError` naming the option.
    """
    numbers: list[float] = []
    for part in filter(None, text.split(",")):
        pieces = part.split(":")
        if len(pieces) == 1:
            numbers.append(quantity(part, option))
            continue
        if len(pieces) != 3 or not pieces[2].strip().isdigit() or int(pieces[2]) < 2:
            raise UserError(f"{option}: `{part}` is not LOW:HIGH:COUNT with a whole COUNT of at least 2")
        low, high = quantity(pieces[0], option), quantity(pieces[1], option)
        if high <= low:
            raise UserError(f"{option}: `{part}` needs LOW below HIGH")
        numbers += np.geomspace(low, high, int(pieces[2])).tolist()
    if not numbers:
        raise UserError(f"{option}: `{text}` holds no number")
    return np.unique(np.array(numbers))


def from_grids(d1: Array, d2: Array, sizes: Array, *, n_expert: int = 8, top_k: int = 2) -> PlannedSweep:
    """Every size times every D1 times every D2, with what D* needs beside: dense models at D1, MoEs at D2."""
    up = [grid.ravel() for grid in np.meshgrid(sizes, d1, d2, indexing="ij")]
    dense = [grid.ravel() for grid in np.meshgrid(sizes, d1, indexing="ij")]
    moe = [grid.ravel() for grid in np.meshgrid(sizes, d2, indexing="ij")]
    of_sizes = (
        f"N1 = {sizes[0]:.4g}" if len(sizes) == 1 else f"{len(sizes)} sizes N1 = {sizes[0]:.4g} to {sizes[-1]:.4g}"
    )
    return PlannedSweep(
        up={"D1": up[1], "D2": up[2], "N1": up[0]},
        dense={"D": dense[1], "N1": dense[0]},
        moe={"D": moe[1], "N1": moe[0]},
        n_expert=n_expert,
        top_k=top_k,
        words=f"{len(d1)} D1 ({_span(d1)}) x {len(d2)} D2 ({_span(d2)}) tokens at {of_sizes}: {len(up[0])} upcycled "
        f"models, with {len(dense[0])} dense models at D1 and {len(moe[0])} MoEs from scratch at D2",
    )


def from_study(study: StudyConfig, plan: Plan, name: str) -> PlannedSweep:
    """The grid of an upcycled sweep of a study, with the study's dense models and MoEs from scratch.

    These are the sweep's own dense parents and every `dense` or `moe` sweep without overrides. Of a sweep with several
    mixtures it is the grid of one, which must be that of each. Raises `UserError` for a sweep that is none of these.
    """
    if name not in plan.sweeps:
        raise UserError(f"--sweep: the study has no sweep `{name}`; {nearest(name, plan.sweeps)}")
    runs = [plan.runs[run_id] for run_id in plan.sweeps[name]]
    if runs[0].lineage != "up":
        upcycled = [sweep for sweep, ids in plan.sweeps.items() if plan.runs[ids[0]].lineage == "up"]
        raise UserError(f"--sweep: `{name}` has no upcycled models; {nearest(name, upcycled)}")
    parents = [plan.runs[run.dense_parent] for run in runs if run.dense_parent and run.dense_parent in plan.runs]
    if any(run.role == "imported" for run in parents):
        raise UserError(
            f"--sweep: `{name}` begins with a checkpoint, so it has one D1 for each, and no dense models of this text: "
            "no law of D1 can be planned with it; `upcycle plan` shows its runs"
        )
    if any(run.parent_moe for run in runs):
        raise UserError(
            f"--sweep: `{name}` begins with mixtures (method `{EXPAND}`), and a design is of D1 of dense models; name "
            "a sweep of another method"
        )
    mixtures: dict[tuple[int, int], list[RunSpec]] = {}
    for run in runs:
        assert run.moe is not None
        if run.moe.granularity > 1 or run.moe.shared_expert:
            raise UserError(
                f"--sweep: `{name}` has the mixture {run.moe.slug}: the laws are of experts as wide as the dense MLP, "
                "none of them shared; name a sweep of such mixtures"
            )
        mixtures.setdefault((run.moe.n_expert, run.moe.top_k), []).append(run)
    grids = {tuple(sorted((run.dense_tokens, run.tokens, n1(run.model)) for run in part)) for part in mixtures.values()}
    if len(grids) > 1:
        raise UserError(f"--sweep: the mixtures of `{name}` have different grids; a law is fitted to one mixture")
    (n_expert, top_k), runs = next(iter(mixtures.items()))
    notes = []
    if len(mixtures) > 1:
        listed = ", ".join(f"{e}x{k}" for e, k in mixtures)
        notes.append(f"The sweep has the mixtures {listed}, each with this grid: what follows holds for one of them.")
    if len({(run.dense_tokens, run.tokens, n1(run.model), run.seed) for run in runs}) < len(runs):
        notes.append("Some runs differ in settings that no law knows of: they are taken as repeats.")
    plain = [
        plan.runs[run_id]
        for sweep, ids in plan.sweeps.items()
        if not study.sweeps[sweep].set and study.sweeps[sweep].schedule in (None, ["wsd"])
        for run_id in ids
    ]
    up = {
        "D1": np.array([float(run.dense_tokens) for run in runs]),
        "D2": np.array([float(run.tokens) for run in runs]),
        "N1": np.array([float(n1(run.model)) for run in runs]),
    }
    sizes = np.unique(up["N1"])
    if len(sizes) == 1:  # models of other sizes do not constrain the laws at one size
        plain = [run for run in plain if n1(run.model) == sizes[0]]
    dense = _scratch([run for run in (*parents, *plain) if run.lineage == "dense"])
    mixed = [run for run in plain if run.lineage == "moe" and run.moe is not None]
    moe = _scratch([run for run in mixed if run.moe and (run.moe.n_expert, run.moe.top_k) == (n_expert, top_k)])
    beside = f"the study's {len(dense['D'])} dense models and {len(moe['D'])} MoEs from scratch"
    words = (
        f"sweep `{name}` of study `{study.study}`: {len(runs)} upcycled models of {n_expert} experts, top-{top_k}, at "
        f"{len(sizes)} {'size' if len(sizes) == 1 else 'sizes'} (N1 {_span(sizes)}), D1 {_span(up['D1'])} and D2 "
        f"{_span(up['D2'])} tokens, with {beside}"
    )
    return PlannedSweep(up, dense, moe if len(moe["D"]) else None, n_expert, top_k, words, tuple(notes))


def _scratch(runs: Sequence[RunSpec]) -> Runs:
    """Runs from scratch as columns, each once."""
    runs = list({run.id: run for run in runs}.values())
    return {
        "D": np.array([float(run.tokens) for run in runs]),
        "N1": np.array([float(n1(run.model)) for run in runs]),
    }


def _span(values: Array) -> str:
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
