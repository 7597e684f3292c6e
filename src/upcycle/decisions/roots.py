"""All roots of many smooth functions of one variable at once: also where two lie close together.

Shape suffixes: B functions (rows), G points of the scan, R pairs of a row and a point.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from upcycle.laws.terms import Array

GOLDEN = (5**0.5 - 1) / 2

OnGrid = Callable[[Array], Array]
"""From points x [G] every function's value [B, G]."""
AtRows = Callable[[NDArray[np.intp], Array], Array]
"""From rows [R] and points x [R] the value of each row's function at its own point [R]."""


def all_roots(
    on_grid: OnGrid, at_rows: AtRows, low: float, high: float, *, spacing: float = 0.05
) -> list[tuple[float, ...]]:
    """Ascending roots within [low, high] of each of B functions, to about 1e-13 of x.

    A scan brackets every change of sign. Where the scan only comes near 0 and turns back, the extremum is sought too:
    if it lies on the other side there are two roots. Two roots and an extremum between them that all fall within one
    step of the scan are found if the step beside sees the turn; laws bend over whole units of ln D, so they do at 0.05.
    """
    x_G = np.linspace(low, high, 1 + int(np.ceil((high - low) / spacing)))
    value_BG = on_grid(x_G)
    above_BG = value_BG >= 0  # not np.sign: a value of exactly 0 belongs to one side, so each crossing counts once
    row_R, at_R = np.nonzero(above_BG[:, :-1] != above_BG[:, 1:])
    brackets = [(row_R, x_G[at_R], x_G[at_R + 1], above_BG[row_R, at_R])]
    brackets += _touching(at_rows, x_G, value_BG, above_BG)
    row_R, left_R, right_R, above_R = (np.concatenate(parts) for parts in zip(*brackets, strict=True))
    root_R = _bisect(at_rows, row_R, left_R, right_R, above_R)
    found: list[list[float]] = [[] for _ in value_BG]
    for row, root in zip(row_R.tolist(), root_R.tolist(), strict=True):
        found[row].append(root)
    return [tuple(sorted(roots)) for roots in found]


Bracket = tuple[NDArray[np.intp], Array, Array, NDArray[np.bool_]]
"""Rows, left ends, right ends, and whether the function is above 0 at the left end; [R] each."""


def _touching(at_rows: AtRows, x_G: Array, value_BG: Array, above_BG: NDArray[np.bool_]) -> list[Bracket]:
    """Brackets of the two roots about each extremum that crosses 0 between points of the scan."""
    distance_BG = np.abs(value_BG)
    here = distance_BG[:, 1:-1]
    turns = (here <= distance_BG[:, :-2]) & (here <= distance_BG[:, 2:])
    same_side = (above_BG[:, 1:-1] == above_BG[:, :-2]) & (above_BG[:, 1:-1] == above_BG[:, 2:])
    row_R, at_R = np.nonzero(turns & same_side)
    if len(row_R) == 0:
        return []
    left_R, right_R, above_R = x_G[at_R], x_G[at_R + 2], above_BG[row_R, at_R + 1]
    sign_R = np.where(above_R, 1.0, -1.0)
    low_R, high_R = left_R.copy(), right_R.copy()
    inner_R, outer_R = high_R - GOLDEN * (high_R - low_R), low_R + GOLDEN * (high_R - low_R)
    for _ in range(40):  # golden section: 0.1 shrinks below the resolution of an extremum
        smaller = sign_R * at_rows(row_R, inner_R) < sign_R * at_rows(row_R, outer_R)
        high_R, low_R = np.where(smaller, outer_R, high_R), np.where(smaller, low_R, inner_R)
        inner_R, outer_R = high_R - GOLDEN * (high_R - low_R), low_R + GOLDEN * (high_R - low_R)
    middle_R = (low_R + high_R) / 2
    crosses = (at_rows(row_R, middle_R) >= 0) != above_R
    row_R, left_R, middle_R, right_R, above_R = (part[crosses] for part in (row_R, left_R, middle_R, right_R, above_R))
    return [(row_R, left_R, middle_R, above_R), (row_R, middle_R, right_R, ~above_R)]


def _bisect(
    at_rows: AtRows, row_R: NDArray[np.intp], left_R: Array, right_R: Array, above_R: NDArray[np.bool_]
) -> Array:
    """The root in each bracket; 45 halvings take 0.1 to the spacing of floats."""
    if len(row_R) == 0:
        return left_R
    for _ in range(45):
        middle_R = (left_R + right_R) / 2
        before = (at_rows(row_R, middle_R) >= 0) == above_R
        left_R, right_R = np.where(before, middle_R, left_R), np.where(before, right_R, middle_R)
    return (left_R + right_R) / 2
