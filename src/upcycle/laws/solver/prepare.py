"""A law over a selection of data, made ready to solve: fixed and shared parameters, scaling, start grid.

Shape suffixes as in `terms`; R counts the scaled variables that the solver sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from upcycle.errors import UserError
from upcycle.laws.law import Box, DesignMatrix, Law, Parameter
from upcycle.laws.solver.solve import Problem
from upcycle.laws.terms import Array, OffsetExponentials, SumOfExponentials

RANK_TOLERANCE = 1e-10
SMALLEST_OFFSET = 1e-12
"""Of the smallest positive input: the least offset where some inputs are 0."""
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
    upper_R: Array
    offset_walls: tuple[float, float] | None
    """Least and greatest value of the law's offset, where it is free."""
    confounded: tuple[str, ...]
    """Parameters that the inputs cannot tell apart, whatever the losses."""

    @property
    def box(self) -> Box:
        """Smallest and largest value of each input."""
        return {name: (float(self.data[name].min()), float(self.data[name].max())) for name in self.law.inputs}

    @property
    def response_N(self) -> Array:
        """The measured response."""
        return self.target_N if self.law.line else np.exp(self.target_N)

    def problem(
        self,
        target_SN: Array | None = None,
        weight_SN: Array | None = None,
        constant_SN: Array | None = None,
    ) -> Problem:
        """The minimisation of this law's Huber losses, for other targets, weights or fixed floors than given before."""
        target = self.target_N[None] if target_SN is None else target_SN
        weight = np.ones((1, len(self.target_N))) if weight_SN is None else weight_SN
        model = self.model if constant_SN is None else replace(self.model, constant_N=constant_SN)
        return Problem(model, target, weight, self.law.delta, self.lower_R, self.upper_R)

    def plausible(self, slot: Slot) -> tuple[float, float]:
        """Bounds of plausible values of a parameter."""
        if slot.parameter.kind == "offset" and self.offset_walls is not None:
            return self.offset_walls
        low, high = slot.parameter.bounds
        if slot.parameter.kind == "floor" and not self.law.line:
            high = float(self.response_N.max())  # in the unit of the response, whatever it is
        return low, high

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
    design = law.design(data)
    target_N = _target(law, data)
    fixed_values = law.internal({name: fixed.get(name, 1.0) for name in law.names})
    is_fixed = np.array([name in fixed for name in law.names])
    for name, value in fixed.items():
        if law.parameter(name).kind == "floor" and value >= float(np.exp(target_N.max())):
            raise UserError(
                f"law `{law.name}`: {name} = {value:g} is held above every {law.response}: hold a smaller one"
            )
    offset = law.offset
    if offset is not None and offset.name in fixed:
        design = design.at(fixed[offset.name])
    if offset is not None and group_N is not None and offset.name not in (*shared, *fixed):
        raise UserError(f"law `{law.name}`: groups with shared parameters share {offset.name} too: add it to `shared`")

    slots = _slots(law, is_fixed, group_N, shared)
    x_MNP, floor_NP = (_expand(a, law, slots, group_N) for a in (design.x_MNP, design.floor_NP))
    walls = _walls(offset, design)
    reference = design if walls is None else design.at(float(np.sqrt(walls[0] * walls[1])))
    level = 1.0 if law.line else float(np.exp(target_N.mean()))
    unscale_PR, scale_RP, null_P = _scaling(slots, _expand(reference.x_MNP, law, slots, group_N), floor_NP, law, level)
    kinds = ["".join(slots[p].parameter.kind for p in np.flatnonzero(column)[:1]) for column in unscale_PR.T]
    lower = {"floor": 0.0} | ({} if walls is None else {"offset": float(np.log(walls[0]))})
    held_MN, held_N = (a[..., is_fixed] @ fixed_values[is_fixed] for a in (design.x_MNP, design.floor_NP))
    model = SumOfExponentials(x_MNP @ unscale_PR, floor_NP @ unscale_PR, held_MN, held_N, law.line)
    if design.shifted_MNP is not None and design.z_N is not None:
        model = OffsetExponentials(
            **vars(model),
            shifted_MNP=_expand(design.shifted_MNP, law, slots, group_N) @ unscale_PR,
            shifted_offset_MN=design.shifted_MNP[..., is_fixed] @ fixed_values[is_fixed],
            z_N=design.z_N,
            place=kinds.index("offset"),
        )
    return Prepared(
        law=law,
        slots=slots,
        fixed=dict(fixed),
        data=data,
        group_N=group_N,
        target_N=target_N,
        model=model,
        unscale_PR=unscale_PR,
        scale_RP=scale_RP,
        lower_R=np.array([lower.get(kind, -np.inf) for kind in kinds]),
        upper_R=np.array([np.log(walls[1]) if walls and kind == "offset" else np.inf for kind in kinds]),
        offset_walls=walls,
        confounded=tuple(dict.fromkeys(slot.parameter.name for slot, null in zip(slots, null_P, strict=True) if null)),
    )


def _walls(offset: Parameter | None, design: DesignMatrix) -> tuple[float, float] | None:
    """Where a free offset stops: far below the smallest positive input and far above the largest it does nothing.

    Where some inputs are 0 and others not, an offset matters however small: the lower wall is out of the way.
    """
    if offset is None or design.z_N is None:
        return None
    if not (design.z_N > 0).any():
        raise UserError(f"{offset.name} needs points at which its input is above 0")
    least = SMALLEST_OFFSET if (design.z_N == 0).any() else offset.bounds[0]
    return float(least * design.z_N[design.z_N > 0].min()), float(offset.bounds[1] * design.z_N.max())


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


def _slots(
    law: Law, is_fixed: NDArray[np.bool_], group_N: NDArray[np.intp] | None, shared: Sequence[str]
) -> tuple[Slot, ...]:
    """The free numbers: one a parameter, or one a group for those that groups do not share."""
    groups = [None] if group_N is None else range(int(group_N.max()) + 1)
    free = [parameter for parameter, fixed in zip(law.parameters, is_fixed, strict=True) if not fixed]
    return tuple(Slot(one, group) for one in free for group in ([None] if one.name in shared else groups))


def _expand(coefficient_NP: Array, law: Law, slots: Sequence[Slot], group_N: NDArray[np.intp] | None) -> Array:
    """The slots' columns of a law's coefficients; a parameter of several groups has one column a group, 0 outside."""
    columns = []
    for slot in slots:
        column = coefficient_NP[..., law.names.index(slot.parameter.name)]
        columns.append(column if slot.group is None else column * (group_N == slot.group))
    return np.stack(columns, axis=-1)


def _scaling(
    slots: Sequence[Slot], x_MNP: Array, floor_NP: Array, law: Law, level: float
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """theta = unscale phi [P, R], phi = scale theta [R, P], and which parameters no data of this design determine [P].

    Exponents: by singular values of the stacked coefficients (orthonormal columns). Floors: by the level of the losses.
    An offset: as its logarithm is, a variable of its own.
    """
    n, p = floor_NP.shape
    single = {"floor": level, "offset": 1.0}
    singles = [k for k, slot in enumerate(slots) if slot.parameter.kind in single]
    others = [k for k in range(p) if k not in singles]
    stacked = (floor_NP if law.line else x_MNP.reshape(-1, p))[:, others]
    _, singular, rotation = np.linalg.svd(stacked, full_matrices=False)
    kept = singular > RANK_TOLERANCE * max(singular.max(initial=0.0), 1.0)
    rank = int(kept.sum())
    unscale_PR, scale_RP = np.zeros((p, rank + len(singles))), np.zeros((rank + len(singles), p))
    unscale_PR[others, :rank] = rotation[kept].T / singular[kept] * np.sqrt(n)
    scale_RP[:rank, others] = rotation[kept] * singular[kept, None] / np.sqrt(n)
    for column, k in enumerate(singles, start=rank):
        size = single[slots[k].parameter.kind]
        unscale_PR[k, column], scale_RP[column, k] = size, 1 / size
    null_P = np.zeros(p, dtype=bool)
    null_P[others] = np.abs(np.eye(len(others)) - rotation[kept].T @ rotation[kept]).max(axis=1, initial=0.0) > 1e-6
    return unscale_PR, scale_RP, null_P


def start_grid(prepared: Prepared) -> Array:
    """Scaled starts [S, R]: every combination of the parameters' start values.

    Exponents are taken as they are; the scales follow from each term's share of the loss, so that every start has the
    data's level. Groups start alike.
    """
    law = prepared.law
    design = law.design(prepared.data)
    level = float(prepared.target_N.mean())
    small = () if design.z_N is None or (design.z_N > 0).all() else (1e-3, 1e-6)
    lists = [
        (prepared.fixed[p.name],) if p.name in prepared.fixed else p.starts + (small if p.kind == "offset" else ())
        for p in law.parameters
    ]
    starts = []
    for combination in itertools.product(*lists):
        theta = np.array(combination)
        x_MNP = design.x_MNP
        for k, p in enumerate(law.parameters):
            if p.kind == "offset" and design.z_N is not None:
                unit = 1.0 if p.name in prepared.fixed else design.z_N[design.z_N > 0].min()
                x_MNP = design.at(combination[k] * unit).x_MNP
                theta[k] = np.log(combination[k] * unit)
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
