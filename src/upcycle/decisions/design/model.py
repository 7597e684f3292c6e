"""What a simulated sweep draws its losses from, and what is fitted to them: one `Side` for each lineage.

At one model size, B N1^-beta + E is one number: Equation 12 is then fitted as Equation 1 and Equation 3 as a power law
in D, with that number as E. With several sizes, E comes from dense models and MoEs from scratch together and is then
fixed for the upcycled ones (section 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from upcycle.decisions.curves import Curve, ThreeLaws
from upcycle.decisions.design.grid import PlannedSweep, Runs
from upcycle.errors import UserError
from upcycle.laws.forms import get_law
from upcycle.laws.law import Law
from upcycle.laws.solver.prepare import prepare
from upcycle.laws.solver.search import search
from upcycle.laws.terms import Array

AT_ONE_SIZE = {
    "joint": "multiplicative_limit",
    "joint_no_interaction": "multiplicative_no_interaction",
    "joint_offset": "multiplicative_offset",
    "chinchilla": "power_in_tokens",
}
"""Laws of the model's size, and what they are at one size."""
OF_SIZE = ("B", "beta")
"""Parameters that one size cannot tell from E."""


@dataclass(frozen=True)
class Side:
    """One lineage of a planned sweep."""

    law: Law
    """What is fitted."""
    values: Mapping[str, float]
    """Its true parameters, or those closest to a truth of another form."""
    fixed: Mapping[str, float]
    runs: Runs
    loss_N: Array
    """True losses of the runs, nats."""
    truth: Curve
    """What the losses are drawn from."""

    @property
    def data(self) -> dict[str, Array]:
        """Inputs and true losses, as the law names them."""
        return {**inputs_of(self.runs), "loss": self.loss_N}

    def curve(self, draws: Mapping[str, Array] | None = None) -> Curve:
        """The fitted law as a loss curve, with draws of its parameters."""
        box = {name: (float(column.min()), float(column.max())) for name, column in self.runs.items()}
        return Curve(self.law, self.values, draws, box)


@dataclass(frozen=True)
class Setting:
    """All that a simulation needs except the noise."""

    sweep: PlannedSweep
    up: Side
    dense: Side | None
    moe: Side | None
    shared_floor: bool
    """E is fitted to dense models and MoEs together, then fixed for the upcycled ones."""
    one_size: bool
    n1: float
    """Size at which D* is asked for."""
    no_d_star: str
    """Why this sweep does not determine D*; empty if it does."""
    confounded: str
    """Why B, beta and E are not fitted as such, in words; empty if they are."""
    notes: tuple[str, ...]

    def sides(self) -> dict[str, Side]:
        """The lineages that there are."""
        found = {"upcycled": self.up, "dense": self.dense, "moe": self.moe}
        return {name: side for name, side in found.items() if side is not None}


def inputs_of(runs: Runs) -> dict[str, Array]:
    """Inputs as the laws name them: Equation 3 calls N what the tables call N1."""
    return {**runs, "N": runs["N1"]}


def set_up(
    sweep: PlannedSweep,
    three: ThreeLaws,
    *,
    law: str | None = None,
    fix: Mapping[str, float | None] | None = None,
    at_n1: float | None = None,
) -> Setting:
    """The laws to simulate and to fit for a planned sweep under a truth.

    `law`: what is fitted to the upcycled losses (None: the truth's own). `fix`: parameters of it that are held (None:
    at the truth); E is held in all three laws. `at_n1`: size at which D* is asked for (None: the sweep's own if it has
    one size, else 1e9). Raises `UserError` for unknown laws or parameters.
    """
    fix, one_size = dict(fix or {}), len(sweep.sizes) == 1
    form = get_law(law) if law else three.upcycled.law
    if not {"D1", "D2"} <= set(form.inputs) <= {"D1", "D2", "N1"}:
        raise UserError(f"--law {form.name}: the upcycled losses take a law of D1, D2 (and N1), e.g. joint")
    if not one_size and "N1" not in form.inputs:
        raise UserError(
            f"law `{form.name}` knows no model size and the sweep has {len(sweep.sizes)}: take one, or joint"
        )
    for name in fix:
        form.parameter(name)
    notes = list(sweep.notes)
    reduced = one_size and form.name in AT_ONE_SIZE and not set(OF_SIZE) & set(fix)
    up = _side(three.upcycled, form, sweep.up, fix, reduced)
    confounded = ""
    if reduced:
        confounded = (
            f"one size cannot tell them apart: B N1^-beta + E is one number, here E = {up.values['E']:.5g}, and "
            f"{form.label} is fitted as {up.law.label}"
        )
    elif up.law.name != three.upcycled.law.name:
        miss = float(np.abs(up.law.predict(up.values, inputs_of(sweep.up)) - up.loss_N).max())
        notes.append(
            f"The losses are drawn from law `{three.upcycled.law.name}` and law `{up.law.name}` is fitted: its true "
            f"values are those closest to the losses without noise (within {miss:.2g} nats)."
        )
    floor = {"E": fix["E"]} if "E" in fix else {}
    dense, moe = (
        None if truth is None or runs is None else _side(truth, get_law("chinchilla"), runs, floor, one_size)
        for truth, runs in ((three.dense, sweep.dense), (three.moe, sweep.moe))
    )
    where = float(sweep.sizes[0]) if one_size else 1e9
    asked = where if at_n1 is None else at_n1
    reason = ""
    if three.moe is None:
        reason = f"{three.source} has no law of MoEs from scratch: D* compares with them"
    elif moe is None:
        reason = "no MoEs from scratch are planned with the same mixture: D* compares with them"
    elif one_size and not np.isclose(asked, where, rtol=0.05):
        reason = f"the sweep has one size, N1 = {where:.4g}: it does not determine D* at N1 = {asked:.4g}"
    elif not one_size and len(np.unique(moe.runs["N1"])) == 1:
        reason = "the MoEs from scratch have one size, the upcycled models several: D* needs MoEs at these sizes too"
    return Setting(
        sweep=sweep,
        up=up,
        dense=dense,
        moe=moe,
        shared_floor=not one_size and None not in (dense, moe) and "E" not in fix and "E" in up.law.names,
        one_size=one_size,
        n1=where if one_size and not reason else asked,
        no_d_star=reason,
        confounded=confounded,
        notes=tuple(notes),
    )


def extended(setting: Setting, added: Mapping[str, Runs]) -> Setting:
    """The same with further runs, by lineage (`up`, `dense`, `moe`)."""
    sweep = setting.sweep
    sides: dict[str, Any] = {}
    for lineage, runs in added.items():
        sweep = sweep.plus(lineage, runs)
        side: Side = getattr(setting, lineage)
        grown: Runs = getattr(sweep, lineage)
        sides[lineage] = replace(side, runs=grown, loss_N=side.truth.loss(**grown))
    return replace(setting, sweep=sweep, **sides)


def _side(truth: Curve, form: Law, runs: Runs, fix: Mapping[str, float | None], reduced: bool) -> Side:
    """A lineage: true losses, the law to fit, its true values and what of it is held."""
    law = get_law(AT_ONE_SIZE[form.name]) if reduced else form
    loss_N = truth.loss(**runs)
    values, constant = dict(truth.values), 0.0
    if reduced and set(OF_SIZE) <= set(values):
        constant = values["B"] * float(runs["N1"][0]) ** -values["beta"]
        values["E"] += constant
    if not set(law.names) <= set(values) or truth.law.name not in (form.name, law.name):
        values = _closest(law, runs, loss_N)
    fixed = {}
    for name, value in fix.items():
        if name in law.names:
            fixed[name] = values[name] if value is None else value + (constant if name == "E" else 0.0)
    return Side(law, {name: values[name] for name in law.names}, fixed, runs, loss_N, truth)


def _closest(law: Law, runs: Runs, loss_N: Array) -> dict[str, float]:
    """The law's parameters closest to losses without noise."""
    prepared = prepare(law, {**inputs_of(runs), "loss": loss_N}, {})
    values_P = prepared.values(search(prepared).phi_R[None])[0]
    return dict(zip((slot.parameter.name for slot in prepared.slots), values_P.tolist(), strict=True))
