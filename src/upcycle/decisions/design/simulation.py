"""Simulate a planned sweep many times: draw its losses, fit each draw as real losses are, and look at the spread.

The fits are those of `upcycle.laws.fit`: Huber's loss of the residuals of the log loss, delta = 1e-3, started from the
truth and from a few of the start grid. Noise of a run is drawn row by row of its lineage, so that the same sweep with
runs added at the end meets the same noise in the others. Shape suffixes: S simulations, N runs, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from upcycle.decisions.curves import ThreeLaws, central_95
from upcycle.decisions.design.model import Setting, Side
from upcycle.decisions.thresholds import Threshold, d_star
from upcycle.errors import UserError
from upcycle.laws.describe import spans_range
from upcycle.laws.law import Parameter
from upcycle.laws.solver.prepare import Prepared, prepare, start_grid
from upcycle.laws.solver.search import refit
from upcycle.laws.terms import Array

LINEAGES = ("upcycled", "dense", "moe")
OTHER_STARTS = 2
"""Starts besides the truth, from the lowest of the start grid."""
LOWEST = 24
"""Of the start grid's lowest, those among which the other starts are spread."""
OFTEN = 0.05
"""Share of simulations at a bound from which a parameter counts as not identifiable."""


@dataclass(frozen=True)
class ExpectedParameter:
    """How well the sweep will determine one parameter."""

    truth: float
    median: float
    interval: tuple[float, float]
    """2.5 % and 97.5 % of the estimates."""
    deviation: float
    """Standard deviation of the estimates."""
    relative: float | None
    """The same as a share of the truth (of a scale or an offset: of its logarithm); None where the truth is 0."""
    held: str
    """How it is held, if it is: fixed, or from other fits; else empty."""
    doubt: str
    """Why it is not identifiable, in words; else empty."""
    undetermined: bool
    """Whether the inputs alone leave it open: its estimates are then arbitrary."""


@dataclass(frozen=True)
class ExpectedInteraction:
    """How well the sweep will determine the sign of alpha3."""

    right_sign: float
    """Share of sweeps whose estimate has the true sign."""
    excludes_0: float
    """Share of sweeps whose own 95 % interval (estimate -+ 1.96 standard deviations) leaves 0 out, on the true side."""
    settled: bool
    """Whether 95 % of the estimates lie on the true side of 0."""


@dataclass(frozen=True)
class Simulated:
    """Estimates of every simulation, and what follows."""

    setting: Setting
    noise: float
    estimates: Mapping[str, Mapping[str, Array]]
    """By lineage, every parameter [S], held ones too."""
    parameters: Mapping[str, Mapping[str, ExpectedParameter]]
    converged: float
    """Share of all fits that converged."""

    @property
    def simulations(self) -> int:
        """How many sweeps were simulated."""
        return len(next(iter(self.estimates["upcycled"].values())))

    def interaction(self) -> ExpectedInteraction | None:
        """Of alpha3; None for a law without it, or where it is held, undetermined or 0."""
        expected = self.parameters["upcycled"].get("alpha3")
        if expected is None or expected.held or expected.undetermined or expected.truth == 0:
            return None
        towards_S = np.sign(expected.truth) * self.estimates["upcycled"]["alpha3"]
        return ExpectedInteraction(
            right_sign=float((towards_S > 0).mean()),
            excludes_0=float((towards_S > 1.96 * expected.deviation).mean()),
            settled=bool(central_95(towards_S)[0] > 0),
        )

    def threshold(self) -> Threshold | None:
        """D* (Equation 13) at the setting's size, through all laws of each simulation; None if not determined."""
        setting = self.setting
        if setting.no_d_star or setting.moe is None:
            return None
        three = ThreeLaws(
            dense=None,
            moe=setting.moe.curve(self.estimates["moe"]),
            upcycled=setting.up.curve(self.estimates["upcycled"]),
            n_expert=setting.sweep.n_expert,
            top_k=setting.sweep.top_k,
            source="a simulated sweep",
            rounded=False,
            paired=True,
        )
        return d_star(three, setting.n1)


def simulate_sweeps(setting: Setting, noise: float, *, simulations: int = 400, seed: int = 0) -> Simulated:
    """Draw the sweep's losses `simulations` times, with normal noise of this standard deviation in nats, and refit.

    Raises `UserError` for a noise that is not above 0 or leaves a loss without a logarithm, or under 40 simulations.
    """
    if not (np.isfinite(noise) and noise > 0):
        raise UserError(f"noise = {noise} nats must be a finite number above 0")
    if simulations < 40:
        raise UserError(f"--simulations {simulations}: 95 % intervals take at least 40")
    sides = setting.sides()
    drawn = {name: _draw(side, noise, simulations, (seed, LINEAGES.index(name))) for name, side in sides.items()}
    estimates: dict[str, dict[str, Array]] = {}
    parameters: dict[str, dict[str, ExpectedParameter]] = {}
    converged: list[NDArray[np.bool_]] = []

    def fit(names: list[str], floor_S: Array | None = None) -> None:
        chosen = [sides[name] for name in names]
        prepared = prepare_together(chosen, shared=len(names) > 1, floor=floor_S is not None)
        start_WR = _starts(prepared, chosen)
        constant_SN = None
        if floor_S is not None:
            shift_S = floor_S - chosen[0].values["E"]
            constant_SN = prepared.model.constant_N + np.repeat(shift_S[:, None], len(prepared.target_N), axis=1)
        target_SN = np.concatenate([drawn[name] for name in names], axis=1)
        fits = refit(prepared, start_WR, target_SN=target_SN, constant_SN=constant_SN)
        converged.append(fits.converged_S)
        values_SP = prepared.values(fits.phi_SR)
        for group, (name, side) in enumerate(zip(names, chosen, strict=True)):
            estimates[name] = {n: np.full(simulations, value) for n, value in side.fixed.items()}
            estimates[name] |= {} if floor_S is None else {"E": floor_S}
            for k, slot in enumerate(prepared.slots):
                if slot.group in (None, group):
                    estimates[name][slot.parameter.name] = values_SP[:, k]
            from_fits = {} if floor_S is None else {"E": "from the dense and MoE fits"}
            held = dict.fromkeys(side.fixed, "fixed") | from_fits
            parameters[name] = _expected(prepared, side, estimates[name], held)

    if setting.shared_floor:
        fit(["dense", "moe"])
        fit(["upcycled"], estimates["moe"]["E"])
    else:
        for name in sides:
            fit([name])
    order = [name for name in LINEAGES if name in sides]
    return Simulated(
        setting,
        noise,
        {name: estimates[name] for name in order},
        {name: parameters[name] for name in order},
        float(np.concatenate(converged).mean()),
    )


def design_doubts(simulated: Simulated) -> list[tuple[str, tuple[str, ...], str]]:
    """What is not identifiable: lineage, parameters, and why in words."""
    found: list[tuple[str, tuple[str, ...], str]] = []
    if simulated.setting.confounded:
        found.append(("upcycled", ("B", "beta", "E"), simulated.setting.confounded))
    for name, parameters in simulated.parameters.items():
        by_reason: dict[str, list[str]] = {}
        for parameter, each in parameters.items():
            if each.doubt:
                by_reason.setdefault(each.doubt, []).append(parameter)
        found += [(name, tuple(names), why) for why, names in by_reason.items()]
    return found


def prepare_together(sides: list[Side], *, shared: bool, floor: bool) -> Prepared:
    """One fit of a side, or (`shared`) of several with one E; with `floor`, E is held at the truth."""
    first = sides[0]
    fixed = dict(first.fixed) | ({"E": first.values["E"]} if floor else {})
    if not shared:
        return prepare(first.law, first.data, fixed)
    data = {name: np.concatenate([side.data[name] for side in sides]) for name in (*first.law.inputs, "loss")}
    group_N = np.repeat(np.arange(len(sides)), [len(side.loss_N) for side in sides])
    return prepare(first.law, data, fixed, group_N=group_N, shared=("E",))


def truth_of(prepared: Prepared, sides: list[Side]) -> Array:
    """The true parameters as scaled variables [R]."""
    internal = [side.law.internal(side.values) for side in sides]
    theta_P = [internal[slot.group or 0][prepared.law.names.index(slot.parameter.name)] for slot in prepared.slots]
    return np.asarray(prepared.scale_RP @ np.array(theta_P))


def _starts(prepared: Prepared, sides: list[Side]) -> Array:
    """The truth and a few of the start grid [W, R]."""
    grid_SR = start_grid(prepared)
    lowest = np.argsort(prepared.problem().objective(grid_SR), kind="stable")[:LOWEST]
    chosen = grid_SR[lowest[np.linspace(0, len(lowest) - 1, OTHER_STARTS).astype(int)]]
    return np.concatenate([truth_of(prepared, sides)[None], chosen])


def _draw(side: Side, noise: float, simulations: int, seed: tuple[int, int]) -> Array:
    """Log losses [S, N] with noise."""
    noise_NS = np.random.default_rng(seed).normal(scale=noise, size=(len(side.loss_N), simulations))
    loss_SN = side.loss_N + noise_NS.T
    if (loss_SN <= 0).any():
        raise UserError(f"noise = {noise:g} nats gives losses below 0: it is of the size of the losses themselves")
    return np.log(loss_SN)


def _expected(
    prepared: Prepared, side: Side, estimates: Mapping[str, Array], held: Mapping[str, str]
) -> dict[str, ExpectedParameter]:
    """Each parameter's spread and verdict, in the law's order."""
    expected = {}
    for parameter in side.law.parameters:
        name = parameter.name
        values_S = estimates[name]
        low, high = central_95(values_S)
        undetermined = "" if name in held else _undetermined(prepared, name)
        doubt = undetermined or ("" if name in held else _doubt(prepared, side, parameter, values_S))
        expected[name] = ExpectedParameter(
            truth=float(side.values[name]),
            median=float(np.median(values_S)),
            interval=(low, high),
            deviation=float(values_S.std()),
            relative=_relative(parameter, float(side.values[name]), values_S),
            held=held.get(name, ""),
            doubt=doubt,
            undetermined=bool(undetermined),
        )
    return expected


def _undetermined(prepared: Prepared, name: str) -> str:
    """Why the inputs alone leave a parameter open, in words; empty if they do not."""
    n, p = len(prepared.target_N), len(prepared.slots)
    if n <= p:
        return f"{n} losses for {p} parameters"
    if name in prepared.confounded:
        return f"these runs cannot tell {', '.join(prepared.confounded)} apart, whatever the noise"
    return ""


def _doubt(prepared: Prepared, side: Side, parameter: Parameter, values_S: Array) -> str:
    """Why the simulated estimates do not determine a parameter, in words; empty if they do."""
    least, most = parameter.bounds
    if parameter.kind == "offset" and prepared.offset_walls is not None:
        least, most = prepared.offset_walls
    if parameter.kind == "floor":
        most = float(side.loss_N.min())
    low, high = central_95(values_S)
    near = 1 + 1e-9 if parameter.kind == "offset" else 1.0
    at_bound = float(((values_S <= least * near) | (values_S >= most / near)).mean())
    if at_bound > OFTEN:
        bounds = f"{least:.3g} to {most:.3g}"
        return f"at or beyond its plausible bounds ({bounds}) in {100 * at_bound:.0f} % of the simulations"
    if spans_range(parameter, (least, most), (low, high)):
        return f"95 % of its estimates span most of its plausible range ({least:.3g} to {most:.3g})"
    relative = _relative(parameter, float(side.values[parameter.name]), values_S)
    if relative is not None and relative > 1:
        return "its standard deviation is larger than itself"
    return ""


def _relative(parameter: Parameter, truth: float, values_S: Array) -> float | None:
    """Relative standard deviation; of a positive parameter that of its logarithm, whose tail is not heavy."""
    if parameter.positive:
        return float(np.log(values_S).std())
    return float(values_S.std() / abs(truth)) if truth else None
