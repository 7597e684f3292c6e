"""The registry of laws: how a law is made from its formula, and the parameters that many laws share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from upcycle.errors import UserError, nearest
from upcycle.laws.law import Coefficient, Law, Parameter, Shifted
from upcycle.laws.terms import Array
from upcycle.study.formulas import Base, Factor, Formula, read_formula

LAWS: dict[str, Law] = {}
"""Every law by name."""


def register(make: Callable[[], Law]) -> Callable[[], Law]:
    """Enter a law under its function's name."""
    if make.__name__ in LAWS:
        raise ValueError(f"there are two laws `{make.__name__}`")
    LAWS[make.__name__] = replace(make(), name=make.__name__)
    return make


def form(label: str, formula: str, *parameters: Parameter, **more: Any) -> Law:
    """A law of this formula (see `upcycle.study.formulas`); `register` names it. `more`: other fields of `Law`.

    A formula that ends in `+ E` has `FLOOR` as its last parameter.
    """
    read = read_formula(formula)
    floor = (FLOOR,) if formula.endswith(" + E") else ()
    return Law("", label, formula, read.inputs, (*parameters, *floor), _terms(read), **more)


def _terms(formula: Formula) -> Callable[..., Sequence[Mapping[str, Coefficient]]]:
    """From the inputs by name, for each term the coefficient of each parameter in its exponent (see `Law.terms`)."""

    def terms(**inputs: Array) -> list[dict[str, Coefficient]]:
        return [
            {name: value for factor in term for name, value in _coefficients(factor, inputs).items()}
            for term in formula.terms
        ]

    return terms


def _coefficients(factor: Factor, inputs: Mapping[str, Array]) -> dict[str, Coefficient]:
    """What a factor adds to its term's exponent, by parameter."""
    base = factor.base
    if base is None:
        return {factor.parameter: 1.0}
    slope = None if factor.of is None else _log(factor.of, inputs)
    found: dict[str, Coefficient]
    if base.offset:  # is fitted itself: the logarithm is not known yet
        found = {factor.parameter: Shifted(-1.0, inputs[base.input])}
        return found if slope is None else found | {str(factor.slope): Shifted(slope, inputs[base.input])}
    log = _log(base, inputs)
    found = {factor.parameter: -log}
    return found if slope is None else found | {str(factor.slope): slope * log}


def _log(base: Base, inputs: Mapping[str, Array]) -> Array:
    return np.asarray((np.log1p if base.one_plus else np.log)(inputs[base.input]))


def special_case(law: Law, without: str, label: str, formula: str) -> Law:
    """The law with one parameter set to 0; what follows from its parameters is left out."""
    kept = (parameter for parameter in law.parameters if parameter.name != without and parameter is not FLOOR)
    return form(label, formula, *kept, decides=law.decides)


def get_law(name: str) -> Law:
    """A law by name.

    Raises `UserError` naming the nearest.
    """
    if name not in LAWS:
        raise UserError(f"unknown law `{name}`; {nearest(name, LAWS)}")
    return LAWS[name]


def scale(name: str, meaning: str, unit: str) -> Parameter:
    """A positive factor of a term."""
    return Parameter(name, "scale", unit, meaning, bounds=(1e-6, 1e24), starts=(0.1, 0.3, 0.9))


def exponent_parameter(name: str, meaning: str, starts: tuple[float, ...] = (0.05, 0.3, 1.0)) -> Parameter:
    """An exponent, signed so that a falling loss has a positive one."""
    return Parameter(name, "exponent", "1", meaning, bounds=(-1.0, 5.0), starts=starts)


def interaction_parameter(name: str, of: str, by: str, start: float) -> Parameter:
    """What couples two inputs: how much the exponent of one of them shrinks as the other grows."""
    meaning = f"how much the exponent of {of} shrinks per e-fold of {by}"
    return Parameter(name, "exponent", "1", meaning, bounds=(-0.5, 0.5), starts=(-start, 0.0, start))


FLOOR = Parameter("E", "floor", "nats", "irreducible loss", bounds=(0.0, 10.0), starts=(0.1, 0.3, 0.9))
INTERACTION = interaction_parameter("alpha3", "D2", "D1", 0.01)
OFFSET = Parameter(
    "D0",
    "offset",
    "tokens",
    "upcycled tokens before which the loss is still that of the dense model",
    bounds=(1e-3, 1e3),
    starts=(0.1, 1.0, 10.0),
)
