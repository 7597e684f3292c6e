"""A law over a selection of data, made ready to solve: fixed and shared parameters, scaling, start grid.

Shape suffixes as in `terms`; R counts the scaled variables that the solver sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upcycle.errors import UserError
from upcycle.laws.law import Law, Parameter
from upcycle.laws.solve import Problem
from upcycle.laws.terms import Array, SumOfExponentials

RANK_TOLERANCE = 1e-10
LARGEST_LOG = 700.0
"""Logarithm of about the largest number."""


@dataclass(frozen=True)
class Slot:
    """One free number of a fit: a parameter, of one group or (None) of all."""

    parameter: Parameter
    group: int | None = None


@dataclass(frozen=True)
class Prepared:
    """A law over data. The solver works in scaled variables phi: internal parameters theta = unscale phi.

    In phi the columns of the law's exponents are orthonormal over the data, whatever the units and however large the
    logarithms; the map is linear, so that parameters come back at full precision.
    """

    law: Law
    slots: tuple[Slot, ...]
    fixed: Mapping[str, float]
    data: Mapping[str, Array]
    group_N: NDArray[np.intp] | None
    """Group of each point, when the law is fitted in groups with shared parameters."""
    target_N: Array
    """Log response (the response itself, for a line)."""
    model: SumOfExponentials
    unscale_PR: Array
    scale_RP: Array
    lower_R: Array
    confounded: tuple[str, ...]
    """Parameters that the inputs cannot tell apart, whatever the losses."""

    @property
    def response_N(self) -> Array:
        """The measured response."""
        return self.target_N if self.law.line else np.exp(self.target_N)

    def problem(self, target_SN: Array | None = None, weight_SN: Array | None = None) -> Problem:
        """The minimisation of this law's Huber losses, for other targets or weights than the data's if given."""
        target = self.target_N[None] if target_SN is None else target_SN
        weight = np.ones((1, len(self.target_N))) if weight_SN is None else weight_SN
        return Problem(self.model, target, weight, self.law.delta, self.lower_R)

    def theta(self, phi_SR: Array) -> Array:
        """Internal parameters [S, P] of scaled variables."""
        return phi_SR @ self.unscale_PR.T

    def values(self, phi_SR: Array) -> Array:
        """Parameters [S, P] of scaled variables, in the order of the slots."""
        theta_SP = self.theta(phi_SR)
        positive_P = [slot.parameter.positive for slot in self.slots]
        # A scale that runs away stays a number; its bounds tell.
        theta_SP[:, positive_P] = np.exp(np.clip(theta_SP[:, positive_P], -LARGEST_LOG, LARGEST_LOG))
        return theta_SP


def prepare(
    law: Law,
    data: Mapping[str, Array],
    fixed: Mapping[str, float],
    *,
    group_N: NDArray[np.intp] | None = None,
    shared: Sequence[str] = (),
) -> Prepared:
    """Set up a fit of `law` to `data` (inputs and response [N]), with some parameters fixed at a value.

    With `group_N`, every free parameter that is not `shared` has a value of its own for each group.
    Raises `UserError` for unknown parameters, bad inputs, or responses that have no logarithm.
    """
    for name in (*fixed, *shared):
        law.parameter(name)
    if not set(law.names) - set(fixed):
        raise UserError(f"law `{law.name}`: all parameters are fixed; leave one free")
    x_MNP, floor_NP = law.design(data)
    target_N = _target(law, data)
    fixed_values = law.internal({name: fixed.get(name, 1.0) for name in law.names})
    is_fixed = np.array([name in fixed for name in law.names])
    offset_MN, constant_N = (a[..., is_fixed] @ fixed_values[is_fixed] for a in (x_MNP, floor_NP))

    slots, x_MNP, floor_NP = _expand(law, is_fixed, x_MNP, floor_NP, group_N, shared)
    level = 1.0 if law.line else float(np.exp(target_N.mean()))
    unscale_PR, scale_RP, null_P = _scaling(slots, x_MNP, floor_NP, law.line, level)
    lower_P = np.array([0.0 if slot.parameter.kind == "floor" else -np.inf for slot in slots])
    is_floor_R = np.array([any(np.isfinite(lower_P[column != 0])) for column in unscale_PR.T])
    return Prepared(
        law=law,
        slots=slots,
        fixed=dict(fixed),
        data=data,
        group_N=group_N,
        target_N=target_N,
        model=SumOfExponentials(x_MNP @ unscale_PR, floor_NP @ unscale_PR, offset_MN, constant_N, law.line),
        unscale_PR=unscale_PR,
        scale_RP=scale_RP,
        lower_R=np.where(is_floor_R, 0.0, -np.inf),
        confounded=tuple(dict.fromkeys(slot.parameter.name for slot, null in zip(slots, null_P, strict=True) if null)),
    )


def _target(law: Law, data: Mapping[str, Array]) -> Array:
    if law.response not in data:
        raise UserError(f"law `{law.name}` needs column `{law.response}`")
    response = np.asarray(data[law.response], dtype=np.float64)
    if not np.isfinite(response).all() or (not law.line and (response <= 0).any()):
        bad = response[~np.isfinite(response) | (response <= 0)][0]
        raise UserError(
            f"law `{law.name}` fits the logarithm of `{law.response}`: {bad} has none; select rows with `where`"
        )
    return response if law.line else np.log(response)


def _expand(
    law: Law,
    is_fixed: NDArray[np.bool_],
    x_MNP: Array,
    floor_NP: Array,
    group_N: NDArray[np.intp] | None,
    shared: Sequence[str],
) -> tuple[tuple[Slot, ...], Array, Array]:
    """The free parameters' columns; a parameter of several groups has one column a group, 0 outside it."""
    slots: list[Slot] = []
    x_columns, floor_columns = [], []
    for p, parameter in enumerate(law.parameters):
        if is_fixed[p]:
            continue
        masks: dict[int | None, Array] = {None: np.ones(len(floor_NP))}
        if group_N is not None and parameter.name not in shared:
            masks = {group: (group_N == group).astype(np.float64) for group in range(int(group_N.max()) + 1)}
        for group, mask_N in masks.items():
            slots.append(Slot(parameter, group))
            x_columns.append(x_MNP[..., p] * mask_N)
            floor_columns.append(floor_NP[..., p] * mask_N)
    return tuple(slots), np.stack(x_columns, axis=-1), np.stack(floor_columns, axis=-1)


def _scaling(
    slots: Sequence[Slot], x_MNP: Array, floor_NP: Array, line: bool, level: float
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """theta = unscale phi [P, R], phi = scale theta [R, P], and which parameters no data of this design determine [P].

    Exponents: by singular values of the stacked coefficients (orthonormal columns). Floors: by the level of the losses.
    """
    n, p = floor_NP.shape
    floors = [k for k, slot in enumerate(slots) if slot.parameter.kind == "floor"]
    others = [k for k in range(p) if k not in floors]
    stacked = (floor_NP if line else x_MNP.reshape(-1, p))[:, others]
    _, singular, rotation = np.linalg.svd(stacked, full_matrices=False)
    kept = singular > RANK_TOLERANCE * max(singular.max(initial=0.0), 1.0)
    rank = int(kept.sum())
    unscale_PR, scale_RP = np.zeros((p, rank + len(floors))), np.zeros((rank + len(floors), p))
    unscale_PR[others, :rank] = rotation[kept].T / singular[kept] * np.sqrt(n)
    scale_RP[:rank, others] = rotation[kept] * singular[kept, None] / np.sqrt(n)
    for column, floor in enumerate(floors, start=rank):
        unscale_PR[floor, column], scale_RP[column, floor] = level, 1 / level
    null_P = np.zeros(p, dtype=bool)
    null_P[others] = np.abs(np.eye(len(others)) - rotation[kept].T @ rotation[kept]).max(axis=1, initial=0.0) > 1e-6
    return unscale_PR, scale_RP, null_P


def start_grid(prepared: Prepared) -> Array:
    """Scaled starts [S, R]: every combination of the parameters' start values.

    Exponents are taken as they are; the scales follow from each term's share of the loss, so that every start has the
    data's level. Groups start alike.
    """
    law, data = prepared.law, prepared.data
    x_MNP, _ = law.design(data)
    level = float(prepared.target_N.mean())
    lists = [(prepared.fixed[p.name],) if p.name in prepared.fixed else p.starts for p in law.parameters]
    starts = []
    for combination in itertools.product(*lists):
        theta = np.array(combination)
        shares = {
            k: combination[k]
            for k, p in enumerate(law.parameters)
            if p.kind in ("scale", "floor") and p.name not in prepared.fixed
        }
        total = sum(shares.values())
        for k, share in shares.items():
            theta[k] = share / total * np.exp(level) if law.parameters[k].kind == "floor" else 0.0
        for k, share in shares.items():
            if law.parameters[k].kind == "scale":
                term = int(np.abs(x_MNP[..., k]).sum(axis=1).argmax())
                theta[k] = np.log(share / total) + level - float((x_MNP[term] @ theta).mean())
        starts.append(theta)
    index = [law.names.index(slot.parameter.name) for slot in prepared.slots]
    return np.unique(np.array(starts)[:, index].round(12), axis=0) @ prepared.scale_RP.T
