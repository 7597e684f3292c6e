"""Matrices that are several in one: their stacked shape, and the part of them that this process holds.

A layer stores its query, key and value projections as one (3D, D) matrix and the two halves of a SwiGLU MLP as one
(2M, D), and files of finished runs hold them so. To split them by head and by hidden unit, several processes hold
the same numbers, in the same order of memory, as (3, D, D) and (2, M, D): then every part is a slice of one dimension.

Shapes: D d_model, M width of the MLP, E experts.
"""

from __future__ import annotations

from torch import Tensor

STACKS = {"wqkv": 3, "w_in": 2}
"""Matrices stacked over each other along the rows, by the last word of a parameter's name."""


def stacked(name: str, weight: Tensor) -> Tensor:
    """The whole parameter `name` with the stack as a dimension of its own: (3D, D) -> (3, D, D), (E, 2M, D) ->
    (E, 2, M, D); any other as it is. A view."""
    count = STACKS.get(name.rpartition(".")[2])
    return weight if count is None else weight.unflatten(-2, (count, -1))


def unstacked(name: str, weight: Tensor) -> Tensor:
    """The inverse of `stacked`: the shape in which a single process and the files of finished runs hold it."""
    return weight.flatten(-3, -2) if name.rpartition(".")[2] in STACKS else weight


def own(weight: Tensor) -> Tensor:
    """The part of a weight that this process multiplies by, with gradient: all of it, unless matrices are split among
    tensor-parallel processes (`model/parallel.py`) and this is a DTensor."""
    return weight.to_local() if hasattr(weight, "to_local") else weight
