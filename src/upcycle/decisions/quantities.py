"""Numbers as people write and read them: 7e9, 7B, 2T, 1.5M, 300k, 83.6 %."""

from __future__ import annotations

import math
import re

from upcycle.errors import UserError

SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
"""What a letter after a number multiplies it by; upper or lower case."""


def quantity(text: str | float, name: str, *, least: float = 0.0, unit: str = "") -> float:
    """A finite number above 0 and at least `least`, from text such as `7e9`, `7B`, `2T`, `1.5M` or `1_000_000`.

    Raises `UserError` naming the quantity, what was given, and how to write it.
    """
    match = re.fullmatch(r"([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)? ?([a-z]?)", str(text).strip().lower())
    if match is None or match[3] not in SUFFIXES:
        raise UserError(
            f"{name}: `{text}` is not a number above 0; write 7e9 or 7B (k, M, B, T for 1e3, 1e6, 1e9, 1e12)"
        )
    try:
        value = float(match[1] + (match[2] or "")) * SUFFIXES[match[3]]
    except ValueError:  # an underscore where Python takes none
        raise UserError(f"{name}: `{text}` is not a number; write 1_000_000 or 1e6") from None
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{name}: `{text}` is {value:g}, and must be finite and above 0")
    if value < least:
        raise UserError(
            f"{name}: `{text}` is {value:g}{' ' + unit if unit else ''}, below the least, {least:g}: "
            f"is a letter missing, as in {text}B?"
        )
    return value


def percent(share: float, digits: int = 0) -> str:
    """A share as text."""
    return f"{100 * share:.{digits}f} %" if share < 10 else "> 1000 %"
