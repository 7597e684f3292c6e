"""The registry of laws, and the parameters that many of them share."""

from __future__ import annotations

from collections.abc import Callable

from upcycle.errors import UserError, nearest
from upcycle.laws.law import Coefficient, Law, Parameter

LAWS: dict[str, Law] = {}
"""Every law by name."""

Term = dict[str, Coefficient]


def register(make: Callable[[], Law]) -> Callable[[], Law]:
    """Enter a law under its function's name."""
    law = make()
    if law.name != make.__name__ or law.name in LAWS:
        raise ValueError(f"law `{law.name}` must be made once, by a function of its name")
    LAWS[law.name] = law
    return make


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


FLOOR = Parameter("E", "floor", "nats", "irreducible loss", bounds=(0.0, 10.0), starts=(0.1, 0.3, 0.9))
INTERACTION = Parameter(
    "alpha3",
    "exponent",
    "1",
    "how much the exponent of D2 shrinks per e-fold of D1",
    bounds=(-0.5, 0.5),
    starts=(-0.01, 0.0, 0.01),
)
OFFSET = Parameter(
    "D0",
    "offset",
    "tokens",
    "upcycled tokens before which the loss is still that of the dense model",
    bounds=(1e-3, 1e3),
    starts=(0.1, 1.0, 10.0),
)
