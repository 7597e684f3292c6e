"""From a prepared law to its result: optimum, validation, and the verdict in words."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import upcycle
from upcycle.errors import UserError
from upcycle.files import plain
from upcycle.laws.certificate.certify import certify
from upcycle.laws.certificate.validate import (
    LeaveOneOut,
    bootstrap,
    condition_number,
    intervals_by_name,
    leave_one_out,
    root_mean_squares,
    slot_name,
)
from upcycle.laws.law import Law, Parameter
from upcycle.laws.result import FitResult
from upcycle.laws.solver.prepare import Prepared
from upcycle.laws.solver.search import Optimum, refit, search
from upcycle.laws.terms import Array

CONDITION_LIMIT = 1e10
"""Condition number of the Gauss-Newton matrix beyond which its inverse is mostly rounding."""
WIDE = 0.5
"""Share of its plausible range that an interval may span before the parameter counts as undetermined."""
EQUAL_OPTIMA = "equal optima"
"""Name of the warning that leave-one-out errors are not unique."""
BOOTSTRAP = "residual bootstrap from leave-one-out residuals"


@dataclass(frozen=True)
class Selection:
    """The rows that were fitted, in canonical order, and where they come from."""

    ids: list[str]
    data: Mapping[str, Array]
    words: str = ""
    simulated: bool = False

    @property
    def sha256(self) -> str:
        """Hash of the values: equal data give equal hashes, in whatever order and under whatever ids they came."""
        names = sorted(self.data)
        rows = zip(*(self.data[name].tolist() for name in names), strict=True)
        lines = [",".join(names), *(",".join(map(repr, values)) for values in rows)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @classmethod
    def of(
        cls, law: Law, data: Mapping[str, Any], ids: Sequence[str] | None, *, by: str | None = None, **about: Any
    ) -> Selection:
        """The columns that a fit needs (of those given), rows sorted by them (`by` first) and by id.

        Raises `UserError` when the columns differ in length.
        """
        wanted = (*([by] if by else []), *law.inputs, law.response)
        columns = {
            name: np.atleast_1d(np.asarray(data[name], dtype=None if name == by else np.float64))
            for name in wanted
            if name in data
        }
        lengths = {name: len(column) for name, column in columns.items()}
        lengths |= {} if ids is None else {"ids": len(ids)}
        if len(set(lengths.values())) > 1:
            raise UserError(f"columns differ in length: {lengths}")
        n = max(lengths.values(), default=0)
        ids = [str(k) for k in ids] if ids is not None else [""] * n
        order = sorted(range(n), key=lambda k: (*(columns[name][k] for name in columns), ids[k]))
        return cls([ids[k] for k in order], {name: column[order] for name, column in columns.items()}, **about)


@dataclass(frozen=True)
class Fitted:
    """A solved fit with its validation; leave-one-out and draws only where there are points enough."""

    prepared: Prepared
    optimum: Optimum
    loo: LeaveOneOut | None = None
    draws_BP: Array | None = None
    """Bootstrap draws of the free parameters."""
    draws_converged: float | None = None
    certified: Mapping[str, Any] = field(default_factory=dict)
    """What `certify` found."""

    @property
    def residual_N(self) -> Array:
        """Fitted minus measured log response (response, for a line)."""
        return self.prepared.model.value(self.optimum.phi_R[None])[0] - self.prepared.target_N

    @property
    def values_P(self) -> Array:
        """The free parameters, in the order of the slots."""
        return self.prepared.values(self.optimum.phi_R[None])[0]


def solve(
    prepared: Prepared,
    *,
    draws: int,
    seed: int,
    target_draws_BN: Array | None = None,
    floor_draws_B: Array | None = None,
    noise: float | None = None,
) -> Fitted:
    """Search the optimum, then validate it where there are more points than parameters.

    `target_draws_BN`: draws of the targets themselves, in place of the residual bootstrap. `floor_draws_B`: draws of a
    fixed E, one for each draw, so that its uncertainty enters. `noise`: standard deviation of a loss between seeds, in
    nats. Without draws only the leave-one-out errors are found.
    """
    optimum, n, p = search(prepared), len(prepared.target_N), len(prepared.slots)
    if n <= p:
        skipped = {"skipped": f"{n} points for {p} parameters leave none to spare"}
        return Fitted(prepared, optimum, certified=skipped)
    loo = leave_one_out(prepared, optimum)
    certified: dict[str, Any] = {}
    if target_draws_BN is not None:
        refits = refit(prepared, optimum.phi_R[None], target_SN=target_draws_BN)
    elif draws == 0:
        certified = {"skipped": "no draws were asked for: likelihood, profiles, folds and intervals take them"}
        return Fitted(prepared, optimum, loo, certified=certified)
    else:
        constant_BN = None
        if floor_draws_B is not None:
            constant_BN = prepared.model.constant_N - prepared.fixed["E"] + floor_draws_B[:, None]
        refits = bootstrap(prepared, optimum, loo.residual_N, draws=draws, seed=seed, constant_BN=constant_BN)
        drawn_floor = constant_BN is not None
        about: dict[str, Any] = {"drawn_floor": drawn_floor, "draws": draws, "seed": seed, "noise": noise}
        certified = certify(prepared, optimum, loo, residual=refits, **about)
    draws_BP = prepared.values(refits.phi_SR)
    return Fitted(prepared, optimum, loo, draws_BP, float(refits.converged_S.mean()), certified)


def describe(fitted: Fitted, selection: Selection, *, interval_method: str) -> FitResult:
    """The result of an ungrouped fit."""
    prepared, law = fitted.prepared, fitted.prepared.law
    names = [slot.parameter.name for slot in prepared.slots]
    drawn = fitted.draws_BP
    values = dict(zip(names, fitted.values_P.tolist(), strict=True)) | dict(prepared.fixed)
    reasons = fit_doubts(fitted)
    return FitResult(
        law=law.name,
        label=law.label,
        formula=law.formula,
        response=law.response,
        identifiable=not reasons,
        statement=verdict_statement(fitted, reasons),
        parameters={p.name: _entry(values[p.name], p.unit, p.meaning) for p in law.parameters},
        fixed=dict(prepared.fixed),
        intervals={} if drawn is None else plain(intervals_by_name(prepared, drawn)),
        interval_method="none" if drawn is None else interval_method,
        derived={d.name: _entry(d.value(values, prepared.box), d.unit, d.meaning) for d in law.derived},
        delta=plain(law.delta),
        selection=selection.words,
        version=upcycle.__version__,
        simulated=selection.simulated,
        draws=None if drawn is None else dict(zip(names, drawn.T.tolist(), strict=True)),
        **outcome(fitted, selection),
    )


def outcome(fitted: Fitted, selection: Selection) -> dict[str, Any]:
    """The fields of a result that hold for all points of a fit together: errors, certificate, rows, warnings."""
    rms, rms_log = root_mean_squares(fitted.prepared, fitted.residual_N)
    loo = fitted.loo
    return {
        "objective": fitted.optimum.objective,
        "n": len(fitted.prepared.target_N),
        "rms": rms,
        "rms_log": rms_log,
        "loo_rms": loo.rms if loo else None,
        "loo_rms_log": loo.rms_log if loo else None,
        "certificate": certificate(fitted),
        "box": plain(fitted.prepared.box),
        "ids": selection.ids,
        "residuals_log": fitted.residual_N.tolist(),
        "loo_residuals_log": loo.residual_N.tolist() if loo else None,
        "data_sha256": selection.sha256,
        "warnings": {EQUAL_OPTIMA: loo.near.statement} if loo and loo.near and loo.near.points else {},
    }


def certificate(fitted: Fitted) -> dict[str, Any]:
    """How the optimum was found and how well the data hold it."""
    prepared, optimum = fitted.prepared, fitted.optimum
    return {
        "solver": "damped Newton, exact derivatives, batched over starts",
        "converged": optimum.converged,
        "points": len(prepared.target_N),
        "parameters": len(prepared.slots),
        "start_grid": optimum.grid,
        "starts": optimum.starts,
        "starts_agree": optimum.agree,
        "gradient": plain(optimum.gradient),
        "iterations": optimum.iterations,
        "condition": plain(condition_number(prepared, optimum.phi_R)),
        "confounded": list(prepared.confounded),
        "bounds_hit": bounds_hit(fitted),
        "loo_converged": float(fitted.loo.refits.converged_S.mean()) if fitted.loo else None,
        "loo_near": asdict(fitted.loo.near) if fitted.loo and fitted.loo.near else None,
        "draws": len(fitted.draws_BP) if fitted.draws_BP is not None else 0,
        "draws_converged": fitted.draws_converged,
        **{key: value for key, value in fitted.certified.items() if key != "draws"},
    }


def verdict_statement(fitted: Fitted, reasons: Sequence[str]) -> str:
    """The verdict in words."""
    if reasons:
        return "not identifiable: " + "; ".join(reasons)
    n, p, optimum = len(fitted.prepared.target_N), len(fitted.prepared.slots), fitted.optimum
    starts = f"{optimum.agree:.0%} of {optimum.starts} starts reach this optimum"
    return f"identifiable: {n} points for {p} parameters; {starts}"


def fit_doubts(fitted: Fitted) -> list[str]:
    """Why the data do not determine every parameter; empty if they do."""
    prepared, optimum = fitted.prepared, fitted.optimum
    n, p = len(prepared.target_N), len(prepared.slots)
    reasons = []
    if n < p + 1:
        reasons.append(f"{n} {'point' if n == 1 else 'points'} for {p} parameters, at least {p + 1} are needed")
    if prepared.confounded:
        reasons.append(f"the inputs of these points cannot tell {', '.join(prepared.confounded)} apart")
    if not optimum.converged:
        reasons.append(f"the fit did not converge (relative gradient {optimum.gradient:.1e})")
    condition = condition_number(prepared, optimum.phi_R)
    if n >= p and not prepared.confounded and condition > CONDITION_LIMIT:
        reasons.append(f"parameters trade off against each other (condition number {condition:.1e})")
    hit = bounds_hit(fitted)
    reasons += [f"{name} is at or beyond its bounds ({words})" for name, words in hit.items()]
    if fitted.draws_BP is not None:
        named = intervals_by_name(prepared, fitted.draws_BP)
        for slot, value in zip(prepared.slots, fitted.values_P, strict=True):
            low, high = named[slot_name(slot)]
            limits = prepared.plausible(slot)
            if slot.parameter.kind == "floor":
                limits = limits[0], min(limits[1], float(prepared.response_N.min()))
            if slot_name(slot) not in hit and spans_range(slot.parameter, limits, (low, high)):
                reasons.append(f"{slot_name(slot)} = {value:.4g} could be anything from {low:.3g} to {high:.3g}")
    return reasons


def bounds_hit(fitted: Fitted) -> dict[str, str]:
    """Parameters at or beyond their plausible bounds, with words."""
    hit = {}
    for slot, value in zip(fitted.prepared.slots, fitted.values_P, strict=True):
        low, high = fitted.prepared.plausible(slot)
        kind = slot.parameter.kind
        near = 1 + 1e-9 if kind == "offset" else 1.0  # an offset stops at its walls, up to rounding
        if value <= low * near or value >= high / near:
            words = f"{value:.3g}, plausible {low:.3g} to {high:.3g}"
            if kind == "floor" and value <= low:
                words = "0: the data show no floor"
            elif kind == "offset":
                words = f"{value:.3g}: {'the data show no offset' if value <= low * near else 'beyond all inputs'}"
            hit[slot_name(slot)] = words
    return hit


def spans_range(parameter: Parameter, plausible: tuple[float, float], interval: tuple[float, float]) -> bool:
    """Whether an interval covers most (`WIDE`) of a parameter's plausible range: in the logarithm for a scale."""
    (least, most), (low, high) = plausible, interval
    if not parameter.positive:
        return high - low > WIDE * (most - least)
    return low <= 0 or not math.isfinite(high) or math.log(high / low) > WIDE * math.log(most / least)


def _entry(value: float, unit: str, meaning: str) -> dict[str, Any]:
    return {"value": plain(value), "unit": unit, "meaning": meaning}
