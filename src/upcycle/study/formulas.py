"""Formulas of laws, read from their text: planning checks names by them, `upcycle.laws` computes by them.

The right side is a sum of terms, a term a product of factors. A factor is a parameter, or a base to a power: the base
an input, or 1 + input, or 1 + input / offset; the power `-parameter` or `(-parameter + parameter ln base)`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_BASE = r"\w+|\(1 \+ \w+(?:/\w+)?\)"
_FACTOR = re.compile(rf" ?({_BASE})(?:\^-(\w+)|\^\(-(\w+) \+ (\w+) ln ?({_BASE})\))?")
_ONE_PLUS = re.compile(r"\(1 \+ (\w+)(?:/(\w+))?\)")


@dataclass(frozen=True)
class Base:
    """An input, 1 + input, or 1 + input / offset."""

    input: str
    one_plus: bool = False
    offset: str | None = None


@dataclass(frozen=True)
class Factor:
    """A parameter alone (`base` is None), or base^-parameter, or base^(-parameter + slope ln of)."""

    parameter: str
    base: Base | None = None
    slope: str | None = None
    of: Base | None = None


@dataclass(frozen=True)
class Formula:
    """The factors of each term."""

    terms: tuple[tuple[Factor, ...], ...]

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of the formula."""
        return tuple(dict.fromkeys(factor.base.input for term in self.terms for factor in term if factor.base))

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the formula."""
        factors = [factor for term in self.terms for factor in term]
        names = [(f.parameter, f.slope, f.base.offset if f.base else None) for f in factors]
        return tuple(dict.fromkeys(name for of_factor in names for name in of_factor if name))


def read_formula(text: str) -> Formula:
    """The formula of a text such as `L = A D1^-alpha1 (1 + D2/D0)^(-alpha2 + alpha3 ln D1) + E`.

    Raises `ValueError` naming the part that is none.
    """
    right, place = text.partition(" = ")[2], 0
    terms: list[list[Factor]] = [[]]
    while place < len(right):
        if right.startswith(" + ", place):  # factors are read whole, so this is not within the parentheses of one
            terms.append([])
            place += len(" + ")
            continue
        match = _FACTOR.match(right, place)
        if match is None:
            raise ValueError(f"formula `{text}`: `{right[place:]}` is not a product of powers")
        base, only, main, slope, of = match.groups()
        power = only or main
        terms[-1].append(Factor(power, _base(base), slope, _base(of) if of else None) if power else Factor(base))
        place = match.end()
    return Formula(tuple(map(tuple, terms)))


def _base(text: str) -> Base:
    match = _ONE_PLUS.fullmatch(text)
    return Base(text) if match is None else Base(match[1], True, match[2])
