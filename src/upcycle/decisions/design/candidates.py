"""Which further runs tell most about D* for their FLOPs: the linearised fit's error of ln D*, with and without each.

Near the truth every fit is a linear least-squares one with the losses' noise, so its covariance is the inverse of the
Gauss-Newton matrix M = sum of g g^T / noise^2 over the runs, g the gradient of a run's loss in the parameters. With E
from dense models and MoEs together (matrix M_s), then fixed for the upcycled ones (M_u), the gap L_moe - L_upcycled
with gradients h_s and h_u has the variance h_u^T M_u^-1 h_u + k^T M_s^-1 k, where k is h_s with, for E, what E moves
in the upcycled fit. The delta method divides by the gap's slope in ln D. Walls, skewness and what Huber's loss costs
against least squares are left out; simulations have them. As E is fitted first and then held, runs are not weighed as
one fit of all would weigh them: a further upcycled run can raise the variance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from upcycle.decisions.design.grid import Runs
from upcycle.decisions.design.model import Setting, Side, inputs_of
from upcycle.decisions.design.simulation import Simulated, prepare_together, truth_of
from upcycle.decisions.thresholds import Threshold
from upcycle.laws.solver.prepare import Prepared
from upcycle.laws.terms import Array

SOLVABLE = 1e13
"""Condition number of M beyond which the linearised fit says nothing."""
CHEAP = 0.05
"""Share of the sweep's FLOPs up to which a further run is cheap beside it."""
BUDGET_FACTOR = 2.0
"""Ratio to the next budget or size, where a single one is planned."""


@dataclass(frozen=True)
class Target:
    """The quantity whose error further runs reduce."""

    what: str
    """`ln D*`, or where the truth has none the smallest gap between the laws."""
    tokens: float
    """D* (the first root), or where the gap is smallest."""
    slope: float
    """Of the gap in ln D, nats; 1 where the gap itself is the target."""


@dataclass(frozen=True)
class Candidate:
    """One further run (with its dense parent, if that is not planned), and what it would do."""

    words: str
    added: Mapping[str, Runs]
    """By lineage: what it adds to the sweep."""
    flops: float
    error: float
    """Standard error of the target with it."""
    gain_per_flop: float
    """Reduction of the standard error per FLOP."""


@dataclass(frozen=True)
class Linearised:
    """The linearised fit of a setting: its information and the target's gradients, in scaled variables."""

    setting: Setting
    noise: float
    target: Target
    scratch: Prepared
    up: Prepared
    information_s: Array
    information_u: Array
    cross_u: Array
    """Sum of g times d loss / d E / noise^2: how E moves the upcycled fit; 0 unless it comes from the others."""
    h_s: Array
    h_u: Array
    floor_s: Array
    """d E / d phi of the scratch fit; 0 unless it is handed on."""
    determined: bool
    """Whether the planned inputs determine the gap at all, with more losses than parameters in each fit."""

    def error(self, rows: Mapping[str, Array] | None = None) -> float:
        """Standard error of the target, with further gradients [N, R] by lineage; infinite if undetermined."""
        m_s, m_u, cross = self.information_s, self.information_u, self.cross_u
        for lineage, g_NR in (rows or {}).items():
            extra = g_NR.T @ g_NR / self.noise**2
            if lineage == "up":
                m_u = m_u + extra
                cross = cross + (g_NR.sum(axis=0) / self.noise**2 if self.setting.shared_floor else 0.0)
            else:
                m_s = m_s + extra
        if not self.determined or max(np.linalg.cond(m_s), np.linalg.cond(m_u)) > SOLVABLE:
            return float("inf")
        w = np.linalg.solve(m_u, self.h_u)
        # E moves the gap by its own -1 and by moving the other parameters of the upcycled fit.
        k = self.h_s + self.floor_s * (-1.0 - w @ cross)
        variance = self.h_u @ w + k @ np.linalg.solve(m_s, k)
        return float(np.sqrt(variance) / abs(self.target.slope))

    def gradients(self, lineage: str, runs: Runs) -> Array:
        """Gradient [N, R] of runs' losses in the scaled variables of their fit."""
        side: Side = getattr(self.setting, lineage)
        prepared = self.up if lineage == "up" else self.scratch
        group = 0 if lineage == "dense" or not self.setting.shared_floor else 1
        return _slopes(side, runs, prepared, group if prepared.group_N is not None else None) @ prepared.unscale_PR


def _slopes(side: Side, runs: Runs, prepared: Prepared, group: int | None) -> Array:
    """d loss / d theta [N, P] at the true parameters, nats: theta are the slots' internal parameters."""
    inputs = inputs_of(runs)
    slope_NP = side.law.gradient(side.values, inputs) * side.law.predict(side.values, inputs)[:, None]
    columns = [
        slope_NP[:, side.law.names.index(slot.parameter.name)] * (slot.group in (None, group) or group is None)
        for slot in prepared.slots
    ]
    return np.stack(columns, axis=1)


def target_of(setting: Setting, threshold: Threshold) -> Target:
    """The true D* at the setting's size, or where there is none the smallest gap within the sweep's budgets."""
    assert setting.moe is not None
    if threshold.root is not None:
        return Target("ln D*", threshold.root, threshold.slopes[threshold.roots.index(threshold.root)])
    budgets = np.concatenate([setting.moe.runs["D"], setting.up.runs["D2"]])
    tokens = np.geomspace(budgets.min(), budgets.max(), 401)
    size = np.full_like(tokens, setting.n1)
    moe = setting.moe.curve().loss(D=tokens, N1=size)
    nearest = int(np.argmin(np.abs(moe - setting.up.curve().loss(D1=tokens, D2=tokens, N1=size))))
    return Target("the smallest gap between the two laws", float(tokens[nearest]), 1.0)


def linearise(setting: Setting, noise: float, threshold: Threshold) -> Linearised:
    """The linearised fit of a setting, and D* (`threshold` of its truth) as the target."""
    assert setting.moe is not None
    scratch_sides = [setting.moe]
    if setting.shared_floor and setting.dense is not None:
        scratch_sides = [setting.dense, setting.moe]
    scratch = prepare_together(scratch_sides, shared=setting.shared_floor, floor=False)
    up = prepare_together([setting.up], shared=False, floor=setting.shared_floor)
    last = len(scratch_sides) - 1 if setting.shared_floor else None

    def information(prepared: Prepared, sides: list[Side]) -> Array:
        at = prepared.model.derivatives(truth_of(prepared, sides)[None])
        g_NR = at.slope_SNP[0] * np.exp(at.value_SN[0])[:, None]
        return np.asarray(g_NR.T @ g_NR / noise**2)

    target = target_of(setting, threshold)
    at, size = np.array([target.tokens]), np.array([setting.n1])
    slopes_s = _slopes(setting.moe, {"D": at, "N1": size}, scratch, last)[0]
    slopes_u = -_slopes(setting.up, {"D1": at, "D2": at, "N1": size}, up, None)[0]
    h_s, h_u = slopes_s @ scratch.unscale_PR, slopes_u @ up.unscale_PR
    # Scaled variables leave out directions that the planned inputs do not see: the gap must not lie along them.
    determined = np.allclose(h_s @ scratch.scale_RP, slopes_s, atol=1e-6 * np.abs(slopes_s).max()) and np.allclose(
        h_u @ up.scale_RP, slopes_u, atol=1e-6 * np.abs(slopes_u).max()
    )
    floor_s, cross_u = np.zeros_like(h_s), np.zeros_like(h_u)
    if setting.shared_floor:
        names = [slot.parameter.name for slot in scratch.slots]
        floor_s = scratch.unscale_PR[names.index("E")]
        cross_u = (_slopes(setting.up, setting.up.runs, up, None) @ up.unscale_PR).sum(axis=0) / noise**2
    return Linearised(
        setting=setting,
        noise=noise,
        target=target,
        scratch=scratch,
        up=up,
        information_s=information(scratch, scratch_sides),
        information_u=information(up, [setting.up]),
        cross_u=cross_u,
        h_s=h_s,
        h_u=h_u,
        floor_s=floor_s,
        determined=bool(determined and all(len(p.target_N) > len(p.slots) for p in (scratch, up))),
    )


def simulated_error(simulated: Simulated, target: Target) -> float:
    """The same standard error over simulations: of the gap where the target is, over its slope."""
    setting = simulated.setting
    assert setting.moe is not None
    at = {"N1": setting.n1, "D": target.tokens}
    moe_S = setting.moe.curve(simulated.estimates["moe"]).loss_draws(**at)
    upcycled = setting.up.curve(simulated.estimates["upcycled"])
    up_S = upcycled.loss_draws(N1=setting.n1, D1=target.tokens, D2=target.tokens)
    return float((moe_S - up_S).std() / abs(target.slope))


def rank(linearised: Linearised) -> list[Candidate]:
    """Every candidate, most reduction of the target's standard error per FLOP first."""
    before = linearised.error()
    ranked = []
    for words, added, flops in _candidates(linearised.setting):
        rows = {lineage: linearised.gradients(lineage, runs) for lineage, runs in added.items() if lineage != "dense"}
        if "dense" in added and linearised.setting.shared_floor:
            rows["dense"] = linearised.gradients("dense", added["dense"])
        after = linearised.error(rows)
        ranked.append(Candidate(words, added, flops, after, (before - after) / flops))
    return sorted(ranked, key=lambda candidate: -candidate.gain_per_flop)


def largest(candidates: Sequence[Candidate], sweep_flops: float) -> Candidate | None:
    """Of the runs that cost at most `CHEAP` of the sweep, the run after which the error is smallest."""
    cheap = [candidate for candidate in candidates if candidate.flops <= CHEAP * sweep_flops]
    return min(cheap, key=lambda candidate: candidate.error, default=None)


def _candidates(setting: Setting) -> Iterator[tuple[str, dict[str, Runs], float]]:
    """Runs at the budgets planned, the next one up and down, at the sizes planned and (of several) the next ones."""
    sweep = setting.sweep
    assert setting.moe is not None
    for size in _widened(sweep.sizes) if len(sweep.sizes) > 1 else sweep.sizes:
        near = sweep.sizes[np.argmin(np.abs(np.log(sweep.sizes / size)))]
        dense = _budgets(sweep.dense, "D", near)
        upcycled = sweep.up["N1"] == near
        d1s, d2s = (_widened(np.unique(sweep.up[name][upcycled])) for name in ("D1", "D2"))
        if setting.shared_floor:
            for tokens in dense:
                runs = _one(D=tokens, N1=size)
                yield _words("dense", runs, sweep.dense), {"dense": runs}, float(sweep.dense_flops(runs)[0])
        for tokens in _budgets(setting.moe.runs, "D", near, d2s):
            runs = _one(D=tokens, N1=size)
            flops = float(sweep.mixture_flops(runs["N1"], runs["D"])[0])
            yield _words("MoE from scratch", runs, setting.moe.runs), {"moe": runs}, flops
        for d1 in d1s:
            parent = _one(D=d1, N1=size)
            planned = _planned(parent, sweep.dense)
            for d2 in d2s:
                runs = _one(D1=d1, D2=d2, N1=size)
                words, added = _words("upcycled", runs, sweep.up), {"up": runs}
                flops = float(sweep.mixture_flops(runs["N1"], runs["D2"])[0])
                if not planned:
                    words, flops = f"{words}, and its dense parent", flops + float(sweep.dense_flops(parent)[0])
                    added |= {"dense": parent} if setting.dense is not None else {}
                yield words, added, flops


def _budgets(runs: Runs, name: str, size: float, otherwise: Array | None = None) -> Array:
    """Budgets planned at a size, widened; `otherwise` where none are."""
    here = np.unique(runs[name][runs["N1"] == size])
    return _widened(here) if len(here) or otherwise is None else otherwise


def _widened(values: Array) -> Array:
    """Ascending values with the next one down and up, by the ratio at each end."""
    if len(values) == 0:
        return values
    if len(values) == 1:
        return np.array([values[0] / BUDGET_FACTOR, values[0], values[0] * BUDGET_FACTOR])
    return np.array([values[0] ** 2 / values[1], *values, values[-1] ** 2 / values[-2]])


def _one(**columns: float) -> Runs:
    return {name: np.array([value]) for name, value in columns.items()}


def _planned(runs: Runs, among: Runs) -> bool:
    """Whether a run is among those planned (within 1 % of each input)."""
    return bool(np.all([np.isclose(among[name], runs[name][0], rtol=0.01) for name in runs], axis=0).any())


def _words(kind: str, runs: Runs, among: Runs) -> str:
    at = ", ".join(f"{name} = {column[0]:.4g}" for name, column in runs.items())
    return f"{kind} at {at}{' (again, another seed)' if _planned(runs, among) else ''}"
