"""The parameters of the paper's own laws as printed, and the range of its data: see `curves.published`."""

from __future__ import annotations

from decimal import Decimal

TABLE_2: dict[str, dict[str, str]] = {
    "dense": {"A": "8.83", "B": "12.3", "alpha": "0.088", "beta": "0.116"},
    "moe": {"A": "32.0", "B": "7.05", "alpha": "0.161", "beta": "0.080"},
    "upcycled": {"A": "16.3", "B": "8.53", "alpha1": "0.043", "alpha2": "0.085", "alpha3": "7.98e-4", "beta": "0.112"},
}
"""Parameters as printed; digits tell the rounding. D in tokens, N1 in non-embedding parameters, losses in nats."""
TABLE_2_E = "0.165"
"""The floor of all three laws, as printed."""

N1_RANGE = (14_751_680.0, 1_085_859_424.0)
"""Sizes of Table 3."""
D_RANGE = (17_600 * 128 * 1024 / 16, 70_400 * 1024 * 1024.0)
"""From a sixteenth of the smallest model's tokens to all of the largest model's (Table 5; the halving is inferred)."""

PAPER_ERROR = 0.015
"""Error of the paper's upcycled law on losses held out, in nats (validation RMS of Figure 6)."""

NOTES = (
    "Table 2 is printed to two or three digits: draws are uniform within that rounding, so bands hold the rounding "
    f"alone. Shares of draws also hold an error of {PAPER_ERROR} nats on each loss, the RMS of Figure 6 on losses held "
    "out. The paper prints no intervals of its parameters.",
    "The five token budgets of a size are inferred: halving downwards from Table 5.",
)


def half_unit(printed: str) -> float:
    """Half a unit of the last printed digit."""
    exponent = Decimal(printed).as_tuple().exponent
    assert isinstance(exponent, int)  # printed numbers are finite
    return float(Decimal(5).scaleb(exponent - 1))
