"""One law fitted to each group of points, and laws fitted to what the groups gave (Figures 4 and 12).

With few points a group, a floor of its own is hardly determined, and its errors move the exponent along.
`shared=("E",)` fits all groups jointly with one floor; the other parameters stay each group's own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from upcycle.errors import UserError
from upcycle.laws.certificate.validate import LeaveOneOut, root_mean_squares
from upcycle.laws.describe import (
    BOOTSTRAP,
    Fitted,
    Selection,
    describe,
    fit_doubts,
    outcome,
    solve,
    verdict_statement,
)
from upcycle.laws.forms import LAWS
from upcycle.laws.law import Law
from upcycle.laws.result import FitResult
from upcycle.laws.solver.prepare import prepare
from upcycle.laws.terms import Array


def fit_by(
    law: Law,
    data: Mapping[str, Any],
    *,
    by: str,
    shared: Sequence[str] = (),
    ids: Sequence[str] | None = None,
    fixed: Mapping[str, float] | None = None,
    draws: int,
    seed: int = 0,
    noise: float | None = None,
    selection: str = "",
    simulated: bool = False,
) -> FitResult:
    """Fit a law to each group of equal `by`, separately or with `shared` parameters, and the relations between them.

    Raises `UserError` as `fit` does, and for a `by` that is no column or an input of the law.
    """
    if by in law.inputs or by not in data:
        why = f"is an input of law `{law.name}`" if by in law.inputs else f"is not a column of {', '.join(data)}"
        raise UserError(f"by = `{by}` {why}: name a column that is constant within each fit")
    whole = Selection.of(law, data, ids, by=by, words=selection, simulated=simulated)
    values, group_N = np.unique(whole.data[by], return_inverse=True)
    parts = [_rows(whole, np.flatnonzero(group_N == g)) for g in range(len(values))]
    method = f"{BOOTSTRAP}, {draws} draws, seed {seed}"
    if shared:
        joint = solve(
            prepare(law, whole.data, fixed or {}, group_N=group_N, shared=shared), draws=draws, seed=seed, noise=noise
        )
        groups = [_group_of(joint, g, part, method) for g, part in enumerate(parts)]
        top = _shared_result(joint, whole, groups[0], list(shared))
    else:
        solved = [
            solve(prepare(law, part.data, fixed or {}), draws=draws, seed=seed + g, noise=noise)
            for g, part in enumerate(parts)
        ]
        groups = [describe(one, part, interval_method=method) for one, part in zip(solved, parts, strict=True)]
        top = _separate_result(law, groups, whole)
    return replace(
        top,
        by=by,
        shared=list(shared),
        groups=[group_json(by, value, group) for value, group in zip(values.tolist(), groups, strict=True)],
        relations={name: result.to_json() for name, result in _relations(law, by, values, groups, top, whole).items()},
    )


def group_json(by: str, value: float | str, group: FitResult) -> dict[str, Any]:
    """A group's fit as JSON, its value of `by` first (which is a field of a fit itself for `lineage`)."""
    return {by: value, **group.to_json()} | {by: value}


def _rows(whole: Selection, rows: Any) -> Selection:
    data = {name: column[rows] for name, column in whole.data.items()}
    return Selection([whole.ids[k] for k in rows], data, whole.words, whole.simulated)


def _group_of(joint: Fitted, group: int, part: Selection, method: str) -> FitResult:
    """One group's part of a joint fit, as a fit; verdict and certificate are those of the whole."""
    prepared = joint.prepared
    assert prepared.group_N is not None
    columns = [k for k, slot in enumerate(prepared.slots) if slot.group in (None, group)]
    alone = prepare(prepared.law, part.data, prepared.fixed)
    # The slots of both follow the law's parameters, so the group's columns are in the same order.
    phi_R = prepared.theta(joint.optimum.phi_R[None])[:, columns] @ alone.scale_RP.T
    objective = float(alone.problem().objective(phi_R)[0])
    rows = prepared.group_N == group
    loo = None
    if joint.loo is not None:
        residual_N = joint.loo.residual_N[rows]
        loo = LeaveOneOut(residual_N, *root_mean_squares(alone, residual_N), joint.loo.refits)
    draws_BP = None if joint.draws_BP is None else joint.draws_BP[:, columns]
    optimum = replace(joint.optimum, phi_R=phi_R[0], objective=objective)
    result = describe(Fitted(alone, optimum, loo, draws_BP, joint.draws_converged), part, interval_method=method)
    # The joint fit's own numbers, to the last bit: the way through the group's scaling rounds.
    exact = zip((prepared.slots[k].parameter.name for k in columns), joint.values_P[columns].tolist(), strict=True)
    parameters = result.parameters | {name: result.parameters[name] | {"value": value} for name, value in exact}
    reasons = fit_doubts(joint)
    return replace(result, parameters=parameters, identifiable=not reasons, statement=verdict_statement(joint, reasons))


def _shared_result(joint: Fitted, whole: Selection, like: FitResult, shared: list[str]) -> FitResult:
    """The whole of a joint fit: its shared parameters, errors over all points, its certificate."""
    prepared = joint.prepared
    columns = {slot.parameter.name: k for k, slot in enumerate(prepared.slots) if slot.group is None}
    reasons = fit_doubts(joint)
    return replace(
        like,
        identifiable=not reasons,
        statement=f"{verdict_statement(joint, reasons)} ({', '.join(shared)} shared by all groups)",
        parameters={name: like.parameters[name] for name in (*columns, *prepared.fixed)},
        intervals={name: like.intervals[name] for name in columns if name in like.intervals},
        derived={},
        draws=None if like.draws is None else {name: like.draws[name] for name in columns},
        **outcome(joint, whole),
    )


def _separate_result(law: Law, groups: Sequence[FitResult], whole: Selection) -> FitResult:
    """The whole of separate fits: errors over all points, and the groups' verdicts."""
    first, points = groups[0], sum(group.n for group in groups)
    wrong = [k for k, group in enumerate(groups) if not group.identifiable]
    verdict = f"identifiable: {len(groups)} separate fits"
    if wrong:
        example = f"group {wrong[0] + 1} is {groups[wrong[0]].statement}"
        verdict = f"not identifiable: {len(wrong)} of {len(groups)} separate fits are not; {example}"
    certificates = [group.certificate for group in groups]
    left_out = [group.loo_residuals_log for group in groups]
    errors: dict[str, Any] = {name: _pooled(groups, name) for name in ("rms", "rms_log", "loo_rms", "loo_rms_log")}
    warned = [group for group in groups if group.warnings]
    return replace(
        first,
        identifiable=not wrong,
        statement=f"{verdict} (nothing shared between groups)",
        parameters={name: first.parameters[name] for name in first.fixed},
        intervals={},
        derived={},
        objective=sum(group.objective for group in groups),
        n=points,
        **errors,
        certificate={
            "converged": all(c["converged"] for c in certificates),
            "points": points,
            "parameters": sum(c["parameters"] for c in certificates),
            "starts_agree": min(c["starts_agree"] for c in certificates),
            "gradient": max(c["gradient"] for c in certificates),
        },
        box={name: [float(whole.data[name].min()), float(whole.data[name].max())] for name in law.inputs},
        ids=whole.ids,
        residuals_log=[r for group in groups for r in group.residuals_log],
        loo_residuals_log=None if None in left_out else [r for residuals in left_out for r in residuals or []],
        data_sha256=whole.sha256,
        draws=None,
        warnings={
            name: f"{len(warned)} of {len(groups)} separate fits, such as: {sentence}"
            for group in warned[:1]
            for name, sentence in group.warnings.items()
        },
    )


def _pooled(groups: Sequence[FitResult], name: str) -> float | None:
    """Root mean square over all points of the groups' root mean squares; None where a group has none."""
    parts = [(group.n, getattr(group, name)) for group in groups]
    if any(value is None for _, value in parts):
        return None
    return math.sqrt(sum(n * value**2 for n, value in parts) / sum(n for n, _ in parts))


def _relations(
    law: Law, by: str, values: Array, groups: Sequence[FitResult], top: FitResult, whole: Selection
) -> dict[str, FitResult]:
    """Fit every law of this law's parameters to the groups' parameters; the groups' draws give the intervals."""
    results = {}
    for relation in LAWS.values():
        source = relation.source
        if source is None or source.law != law.name or relation.inputs != (by,) or source.parameter in top.fixed:
            continue
        part = Selection(
            [f"{by}={value:g}" for value in values],
            {
                by: values,
                relation.response: source.sign * np.array([group.values[source.parameter] for group in groups]),
            },
            f"{relation.response} of law `{law.name}` by {by}, {whole.words}",
            whole.simulated,
        )
        drawn = [group.draws[source.parameter] for group in groups if group.draws is not None]
        draws_BN = source.sign * np.array(drawn).T if len(drawn) == len(groups) else None
        if draws_BN is not None and not relation.line:
            draws_BN = np.log(draws_BN)
        fitted = solve(prepare(relation, part.data, {}), draws=0, seed=0, target_draws_BN=draws_BN)
        result = describe(fitted, part, interval_method="the groups' bootstrap draws, each refitted")
        if result.identifiable and not top.identifiable:
            verdict = "not identifiable: its points are parameters of fits that are not"
            result = replace(result, identifiable=False, statement=verdict)
        results[relation.name] = result
    return results
