"""What a law is: a declaration, from which prediction, derivatives, scaling and starts all follow.

A law's loss is a sum of terms. Each is exp(a linear combination of parameters) whose coefficients depend on the
inputs, such as A D^-alpha = exp(ln A - alpha ln D), or a floor E, which is a parameter itself. One parameter may be
inside a logarithm: the offset D0 of ln(1 + D2 / D0). The fit works on internal parameters: logarithms of scales and
of the offset, the others as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upcycle.errors import UserError, nearest
from upcycle.laws.terms import Array, OffsetExponentials, SumOfExponentials

Box = Mapping[str, tuple[float, float]]
"""Smallest and largest value of each input."""


@dataclass(frozen=True)
class Shifted:
    """The coefficient times ln(1 + x / offset), where the offset is a parameter of the law."""

    times: Array | float
    x: Array


Coefficient = Array | float | Shifted
"""What a parameter is multiplied by in an exponent."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a law."""

    name: str
    kind: Literal["scale", "exponent", "floor", "coefficient", "offset"]
    """`scale`: factor of a term, positive, internally its logarithm; `exponent`: any sign; `floor`: a term by itself,
    at least 0; `coefficient`: of a straight line; `offset`: see `Shifted`, positive, internally its logarithm."""
    unit: str
    meaning: str
    bounds: tuple[float, float]
    """Plausible values; of an offset in units of the smallest and of the largest positive input. A fit may leave them
    (only a floor's 0 and an offset's bounds are walls), but reports it."""
    starts: tuple[float, ...]
    """Start grid: of a scale or floor, its term's share of the loss (before normalising); of an offset, in units of the
    smallest positive input; of the others, values."""

    @property
    def positive(self) -> bool:
        """Whether the internal parameter is the logarithm."""
        return self.kind in ("scale", "offset")


@dataclass(frozen=True)
class Derived:
    """A quantity that follows from a law's parameters (and the range of the data)."""

    name: str
    unit: str
    meaning: str
    value: Callable[[Mapping[str, float], Box], float]


@dataclass(frozen=True)
class ParameterSource:
    """A response that is another law's parameter times a sign."""

    law: str
    parameter: str
    sign: float = 1.0


@dataclass(frozen=True)
class DesignMatrix:
    """The inputs of a law as coefficients of its internal parameters."""

    x_MNP: Array
    """In the exponents."""
    floor_NP: Array
    """In the floor (or line)."""
    shifted_MNP: Array | None = None
    """In the exponents, times ln(1 + z / offset)."""
    z_N: Array | None = None

    def at(self, offset: float) -> DesignMatrix:
        """The same with the offset held at a value."""
        if self.shifted_MNP is None or self.z_N is None:
            return self
        return DesignMatrix(self.x_MNP + np.log1p(self.z_N / offset)[:, None] * self.shifted_MNP, self.floor_NP)


@dataclass(frozen=True)
class Law:
    """A functional form: see `upcycle.laws.forms` for all that there are."""

    name: str
    label: str
    """Where it is in the paper."""
    formula: str
    inputs: tuple[str, ...]
    """Columns of losses.csv."""
    parameters: tuple[Parameter, ...]
    terms: Callable[..., Sequence[Mapping[str, Coefficient]]]
    """From the inputs, by name: for each term the coefficient of each internal parameter in its exponent."""
    derived: tuple[Derived, ...] = ()
    response: str = "loss"
    line: bool = False
    """The response itself (not its logarithm) is linear in the parameters."""
    delta: float = 1e-3
    """Huber's delta on residuals of the log response; infinite: least squares."""
    source: ParameterSource | None = None
    """For a law of another law's parameters: which; its input is what the other was fitted by."""
    decides: Literal["scratch", "upcycled"] | None = None
    """Whose losses it predicts where decisions compare training from scratch with upcycling; None: they do not use it.
    A law that says `scratch` takes D (and N), one that says `upcycled` takes D1 and D2 (and N1)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(parameter.name for parameter in self.parameters)

    def parameter(self, name: str) -> Parameter:
        """A parameter by name.

        Raises `UserError` naming the nearest.
        """
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise UserError(f"law `{self.name}` has no parameter `{name}`; {nearest(name, self.names)}")

    @property
    def offset(self) -> Parameter | None:
        """The parameter inside a logarithm, if there is one."""
        return next((parameter for parameter in self.parameters if parameter.kind == "offset"), None)

    def design(self, data: Mapping[str, Array]) -> DesignMatrix:
        """Coefficients of the internal parameters at these inputs.

        Raises `UserError` for an input that is missing, or outside the law's domain.
        """
        inputs = self._inputs(data)
        n, names = len(next(iter(inputs.values()))), self.names
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = self.terms(**inputs)
        z_N: Array | None = None
        plain_MNP, shifted_MNP = np.zeros((2, len(terms), n, len(names)))
        for m, term in enumerate(terms):
            for name, coefficient in term.items():
                if isinstance(coefficient, Shifted):
                    shifted_MNP[m, :, names.index(name)], z_N = coefficient.times, coefficient.x
                else:
                    plain_MNP[m, :, names.index(name)] = coefficient
        is_floor = [self.line or all(self.parameter(name).kind == "floor" for name in term) for term in terms]
        floor_M = np.array(is_floor, dtype=bool)
        floor_NP, x_MNP, shifted_MNP = plain_MNP[floor_M].sum(axis=0), plain_MNP[~floor_M], shifted_MNP[~floor_M]
        wrong = ~(np.isfinite(x_MNP).all(axis=(0, 2)) & np.isfinite(floor_NP).all(axis=1))
        if z_N is not None:
            wrong |= ~(np.isfinite(shifted_MNP).all(axis=(0, 2)) & (z_N >= 0))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            values = ", ".join(f"{name} = {inputs[name][row]:g}" for name in self.inputs)
            raise UserError(
                f"law `{self.name}` takes logarithms of its inputs and cannot take {values}: select rows with `where`"
            )
        return DesignMatrix(x_MNP, floor_NP, None if z_N is None else shifted_MNP, z_N)

    def _inputs(self, data: Mapping[str, Array]) -> dict[str, Array]:
        for name in self.inputs:
            if name not in data:
                raise UserError(f"law `{self.name}` needs column `{name}`; {nearest(name, data)}")
        columns = (np.atleast_1d(np.asarray(data[name], dtype=np.float64)) for name in self.inputs)
        return dict(zip(self.inputs, np.broadcast_arrays(*columns), strict=True))

    def internal(self, values: Mapping[str, float]) -> Array:
        """Internal parameters [P] of values; a scale of 0 becomes e^-10000, whose term is 0.

        Raises `UserError` for a scale or floor below 0, or an offset that is not above it.
        """
        for p in self.parameters:
            if p.kind == "offset" and not values[p.name] > 0:
                raise UserError(f"law `{self.name}`: {p.name} = {values[p.name]} is not above 0")
            if p.kind in ("scale", "floor") and not values[p.name] >= 0:
                raise UserError(f"law `{self.name}`: {p.name} = {values[p.name]} is not at least 0")
        return np.array([_log(values[p.name]) if p.positive else values[p.name] for p in self.parameters])

    def model(self, data: Mapping[str, Array]) -> SumOfExponentials:
        """The law's arithmetic over all of its internal parameters at these inputs."""
        design = self.design(data)
        zeros_MN, zeros_N = np.zeros(design.x_MNP.shape[:2]), np.zeros(len(design.floor_NP))
        model = SumOfExponentials(design.x_MNP, design.floor_NP, zeros_MN, zeros_N, self.line)
        if self.offset is None or design.shifted_MNP is None or design.z_N is None:
            return model
        return OffsetExponentials(
            **vars(model),
            shifted_MNP=design.shifted_MNP,
            shifted_offset_MN=zeros_MN,
            z_N=design.z_N,
            place=self.names.index(self.offset.name),
        )

    def predict(self, values: Mapping[str, float], data: Mapping[str, Array]) -> Array:
        """The response [N] at these inputs."""
        f_N = self.model(data).value(self.internal(values)[None])[0]
        return f_N if self.line else np.exp(f_N)

    def gradient(self, values: Mapping[str, float], data: Mapping[str, Array]) -> Array:
        """Gradient [N, P] of the log response (of the response, for a line) in the internal parameters."""
        return self.model(data).derivatives(self.internal(values)[None]).slope_SNP[0]


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -1e4
