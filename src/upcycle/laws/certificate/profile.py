"""How far one parameter can move before the others cannot make up for it: its profile, and a test of the interaction.

The likelihood is that of `upcycle.laws.certificate.likelihood`; all fits with the parameter held are one batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import chi2, f

from upcycle.laws.certificate.likelihood import log_likelihood
from upcycle.laws.certificate.validate import LEVEL, resampled
from upcycle.laws.solver.prepare import Prepared, prepare
from upcycle.laws.solver.search import FRESH, Optimum, Refits, refit, search
from upcycle.laws.solver.solve import minimise
from upcycle.laws.terms import Array, OffsetExponentials

INTERACTIONS = ("alpha3", "beta3")
"""Names of parameters that couple two inputs."""
PROFILED = ("E", *INTERACTIONS)
QUARTERINGS = 10
"""Distances from the optimum, each a quarter of the last, at which a profile's ends are first bracketed."""
ENOUGH_DRAWS = 39
"""Bootstrap draws from which a p of 0.025 can be seen."""
STEPS = 12
"""Values of a profile on each side of the optimum."""


@dataclass(frozen=True)
class Profile:
    """The best fit at each value of one parameter."""

    values: Array
    objective: Array
    deviance: Array
    """Twice the log likelihood that is lost against the optimum."""
    interval: tuple[float | None, float | None]
    """Where the deviance is below the threshold; None where that is so up to its wall or plausible bound."""
    threshold: float


@dataclass(frozen=True)
class Interaction:
    """A test of the hypothesis that an interaction is 0."""

    name: str
    value: float
    statistic: float
    """Likelihood ratio: the deviance of the fit without the interaction."""
    p_chi2: float
    """From the chi-square distribution with one degree of freedom, which holds for many points; too small for few."""
    p_bootstrap: float
    """Share of data sets without interaction, simulated from this one's residuals, with as large a statistic."""
    draws: int
    failed: int
    """Draws whose fit, with or without the interaction, did not converge (they count all the same)."""
    statement: str


@dataclass(frozen=True)
class Held:
    """A fit with one parameter held, at a value of its own in each row of a batch."""

    name: str
    whole: Prepared
    optimum: Optimum
    """Of the whole fit."""
    prepared: Prepared
    """With the parameter held at 0."""
    place: int
    """Of the held parameter among the slots of the whole fit."""
    coefficient: Array
    """Of the held parameter: in the exponents [M, N], or in the floor [N]."""
    shifted_MN: Array | None
    """The same where it stands before a logarithm with an offset."""

    @classmethod
    def of(cls, whole: Prepared, optimum: Optimum, name: str) -> Held:
        """Hold a free parameter, exponent or floor, that has one value for all groups."""
        law = whole.law
        shared = [slot.parameter.name for slot in whole.slots if slot.group is None and slot.parameter.name != name]
        design, column, offset = law.design(whole.data), law.names.index(name), law.offset
        if offset is not None and offset.name in whole.fixed:
            design = design.at(whole.fixed[offset.name])
        in_floor = law.line or law.parameter(name).kind == "floor"
        held = prepare(law, whole.data, {**whole.fixed, name: 0.0}, group_N=whole.group_N, shared=shared)
        return cls(
            name,
            whole,
            optimum,
            replace(held, target_N=whole.target_N),  # which a simulation may have replaced
            [slot.parameter.name for slot in whole.slots].index(name),
            design.floor_NP[..., column] if in_floor else design.x_MNP[..., column],
            None if design.shifted_MNP is None else design.shifted_MNP[..., column],
        )

    @property
    def value(self) -> float:
        """The parameter at the whole fit's optimum."""
        return float(self.whole.values(self.optimum.phi_R[None])[0, self.place])

    def starts(self, value_S: Array) -> Array:
        """Where to descend from at each value [2, S, R]: the whole optimum, and the same moved to first order."""
        theta_P = self.whole.theta(self.optimum.phi_R[None])[0]
        others = np.delete(theta_P, self.place)
        slope_NP = self.whole.model.derivatives(self.optimum.phi_R[None]).slope_SNP[0] @ self.whole.scale_RP
        own_N, slope_NR = slope_NP[:, self.place], np.delete(slope_NP, self.place, axis=1) @ self.prepared.unscale_PR
        follow_R, *_ = np.linalg.lstsq(slope_NR, -own_N, rcond=None)
        phi_R = self.prepared.scale_RP @ others
        moved_SR = phi_R + (value_S - self.value)[:, None] * follow_R
        return np.stack([np.broadcast_to(phi_R, moved_SR.shape), moved_SR])

    def fit(self, value_S: Array, start_WSR: Array, target_SN: Array | None = None) -> Array:
        """Fit all else at each value (to targets of its own), from several starts each; the least objectives [S]."""
        warm, rows = start_WSR.shape[:2]
        values = np.tile(value_S, warm)
        model = self.prepared.model
        if self.coefficient.ndim == 1:
            model = replace(model, constant_N=model.constant_N + values[:, None] * self.coefficient)
        else:
            model = replace(model, offset_MN=model.offset_MN + values[:, None, None] * self.coefficient)
        if isinstance(model, OffsetExponentials) and self.shifted_MN is not None:
            moved_SMN = model.shifted_offset_MN + values[:, None, None] * self.shifted_MN
            model = replace(model, shifted_offset_MN=moved_SMN)
        problem = self.prepared.problem(None if target_SN is None else np.tile(target_SN, (warm, 1)))
        end = minimise(replace(problem, model=model), start_WSR.reshape(warm * rows, -1))
        return end.objective_S.reshape(warm, rows).min(axis=0)

    def deviance(self, objective_S: Array) -> Array:
        """Twice the log likelihood lost against the whole fit's optimum."""
        n, delta = len(self.whole.target_N), self.whole.law.delta
        highest = log_likelihood(np.array(self.optimum.objective), n, delta)
        return np.asarray(2 * (highest - log_likelihood(objective_S, n, delta)))


def threshold(points: int, parameters: int, together: int = 1) -> float:
    """Rise of the deviance at the ends of a 95 % interval: 3.84 for many points, more for few.

    n ln(1 + m F / (n - p)), with F's quantile for m and n - p degrees of freedom, is exact for a linear law, Gaussian
    residuals and least squares; m parameters are held `together`.
    """
    freedom = points - parameters
    return points * float(np.log1p(together * f.ppf(LEVEL, together, freedom) / freedom))


def calibrated_threshold(
    whole: Prepared,
    optimum: Optimum,
    name: str,
    pool_N: Array,
    *,
    draws: int,
    seed: int,
    full: Refits | None = None,
) -> float:
    """The threshold for the deviances that this law has on data like these: 3.84 times their mean, if that is more.

    Where residuals lie beyond delta without having exponential tails, deviances are larger than chi-square's (1.6 times
    for Gaussian residuals far beyond it). Their mean is taken over data simulated from the fit and its residuals
    `pool_N`, in which the true value is the fitted one (Bartlett's correction, by bootstrap). `full`: the residual
    bootstrap of these draws and this seed, if there is one already.
    """
    held = Held.of(whole, optimum, name)
    target_BN = resampled(whole.model.value(optimum.phi_R[None])[0], pool_N, draws=draws, seed=seed)
    full = full or refit(whole, optimum.warm_SR[:-FRESH], target_SN=target_BN)
    value_B = np.full(draws, held.value)
    without_B = held.fit(value_B, held.starts(value_B)[:1], target_BN)
    n, delta = len(whole.target_N), whole.law.delta
    deviance_B = 2 * (log_likelihood(full.objective_S, n, delta) - log_likelihood(without_B, n, delta))
    return max(threshold(n, len(whole.slots)), float(chi2.ppf(LEVEL, 1) * deviance_B.mean()))


def profile(whole: Prepared, optimum: Optimum, name: str, drop: float) -> Profile:
    """The profile of a parameter around the optimum, out to where the deviance rises to `drop` or the values end.

    The ends are bracketed at distances from the optimum that shrink by factors of 4, then `STEPS` values on each side
    are fitted; between them the root of the deviance, which is nearly straight, is interpolated.
    """
    held = Held.of(whole, optimum, name)
    hat, (least, most) = held.value, whole.law.parameter(name).bounds
    if whole.law.parameter(name).kind == "floor":
        most = min(most, float(whole.response_N.min()))
    reach_E = np.array([min(least - hat, 0.0), max(most - hat, 0.0)])
    distance_EJ = reach_E[:, None] * 0.25 ** np.arange(QUARTERINGS + 1)[::-1]
    bracket_EJ = held.fit(hat + distance_EJ.ravel(), held.starts(hat + distance_EJ.ravel()))
    beyond_EJ = held.deviance(bracket_EJ).reshape(distance_EJ.shape) > drop
    first_E = np.where(beyond_EJ.any(axis=1), beyond_EJ.argmax(axis=1), QUARTERINGS)
    steps = np.arange(1, STEPS + 1) / STEPS
    value_S = hat + np.concatenate([distance_EJ[0, first_E[0]] * steps[::-1], distance_EJ[1, first_E[1]] * steps])
    objective_S = held.fit(value_S, held.starts(value_S))
    low, high = slice(STEPS - 1, None, -1), slice(STEPS, None)
    deviance_S = held.deviance(objective_S)
    ends = tuple(_crossing(drop, hat, value_S[side], deviance_S[side]) for side in (low, high))
    values = np.insert(value_S, STEPS, hat)
    objective = np.insert(objective_S, STEPS, optimum.objective)
    kept = np.append(np.diff(values) > 0, True)  # an optimum at its wall has no values beyond
    return Profile(values[kept], objective[kept], held.deviance(objective[kept]), (ends[0], ends[1]), drop)


def _crossing(drop: float, hat: float, value_S: Array, deviance_S: Array) -> float | None:
    """Where the deviance first reaches `drop` on the way out from the optimum."""
    over = np.flatnonzero(deviance_S >= drop)
    if not len(over):
        return None
    k = int(over[0])
    inner, inner_root = (value_S[k - 1], np.sqrt(max(deviance_S[k - 1], 0.0))) if k else (hat, 0.0)
    if not np.isfinite(deviance_S[k]):
        return float(inner)
    share = (np.sqrt(drop) - inner_root) / (np.sqrt(deviance_S[k]) - inner_root)
    return float(inner + share * (value_S[k] - inner))


def interaction_test(
    whole: Prepared, optimum: Optimum, name: str, pool_N: Array, *, draws: int, seed: int
) -> Interaction:
    """Likelihood-ratio test of the interaction, with a bootstrap under the null from the residuals `pool_N`."""
    held = Held.of(whole, optimum, name)
    null, n, delta = search(held.prepared), len(whole.target_N), whole.law.delta
    statistic = float(held.deviance(np.array(null.objective)))
    target_BN = resampled(held.prepared.model.value(null.phi_R[None])[0], pool_N, draws=draws, seed=seed)
    without = refit(held.prepared, null.phi_R[None], target_SN=target_BN)
    embedded_P = np.insert(held.prepared.theta(null.phi_R[None])[0], held.place, 0.0)
    full = refit(whole, np.stack([whole.scale_RP @ embedded_P, optimum.phi_R]), target_SN=target_BN)
    statistic_B = 2 * (log_likelihood(full.objective_S, n, delta) - log_likelihood(without.objective_S, n, delta))
    p_chi2 = float(chi2.sf(statistic, 1))
    p_bootstrap = float((1 + (statistic_B >= statistic).sum()) / (1 + draws))
    failed = int((~(without.converged_S & full.converged_S)).sum())
    words = _words(name, held.value, p_chi2, p_bootstrap, draws)
    return Interaction(name, held.value, statistic, p_chi2, p_bootstrap, draws, failed, words)


def _words(name: str, value: float, p_chi2: float, p_bootstrap: float, draws: int) -> str:
    """The verdict, by bootstrap; too few draws give none, as chi-square is too sure for few points."""
    if draws < ENOUGH_DRAWS:
        return (
            f"{name} = {value:.3g}: {draws} draws are too few to test it against 0, ask for {ENOUGH_DRAWS} or more "
            f"(chi-square, too sure for few points, gives p = {p_chi2:.2g})"
        )
    least = ", the least that so few draws can show" if p_bootstrap <= 1 / (draws + 1) else ""
    if p_bootstrap <= 1 - LEVEL:
        return f"{name} = {value:.3g} differs from 0 (p = {p_bootstrap:.2g}{least}): the data show an interaction"
    return (
        f"{name} = {value:.3g} does not differ from 0 (p = {p_bootstrap:.2g}): the data do not settle an interaction "
        "or its sign"
    )
