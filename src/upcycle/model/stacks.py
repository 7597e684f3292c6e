"""Matrices that are several in one: their stacked shape, and the part of them that this process holds.

A layer stores its query, key and value projections as one matrix `wqkv` and the two halves of a SwiGLU MLP as one
(2M, D), and files of finished runs hold them so. To split them by head and by hidden unit, several processes hold
the same numbers, in the same order of memory, with the stack as a dimension of its own: then every part is a slice of
one dimension.

`wqkv` is R + 2 matrices of (GC, D): R of queries, one of keys, one of values. Head g of each of the R uses head g of
keys and values: query head j G + g is Hugging Face's g R + j (`model/interop.py`). `wo` has its columns in that order.

Shapes: D d_model, M width of the MLP, E experts, G heads of keys and values, R queries for each of them, C width of a
head. The paper's: R = 1, GC = D.
"""

from __future__ import annotations

from torch import Tensor

from upcycle.study.shape import ModelSpec


def stacked(name: str, weight: Tensor, model: ModelSpec) -> Tensor:
    """The whole parameter `name` with the stack as a dimension of its own: `wqkv` (R + 2, GC, D), `bqkv` (R + 2, GC),
    `wo` (D, R, GC) unless R is 1, `w_in` (2, M, D) or (E, 2, M, D); any other as it is. A view."""
    match name.rpartition(".")[2]:
        case "wqkv":
            return weight.unflatten(-2, (model.sharing + 2, -1))
        case "bqkv":
            return weight.unflatten(-1, (model.sharing + 2, -1))
        case "wo" if model.sharing > 1:
            return weight.unflatten(-1, (model.sharing, -1))
        case "w_in":
            return weight.unflatten(-2, (2, -1))
    return weight


def unstacked(name: str, weight: Tensor) -> Tensor:
    """The inverse of `stacked`: the shape in which a single process and the files of finished runs hold it."""
    match name.rpartition(".")[2]:
        case "wqkv" | "w_in":
            return weight.flatten(-3, -2)
        case "bqkv":
            return weight.flatten()
        case "wo":
            return weight.flatten(1)
    return weight


def is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a parameter, stacked or not, is a matrix (or one for each expert) and not a vector: norm or bias."""
    return weight.ndim >= 2 and not name.endswith("bqkv")


def own(weight: Tensor) -> Tensor:
    """The part of a weight that this process multiplies by, with gradient: all of it, unless matrices are split among
    tensor-parallel processes (`model/parallel.py`) and this is a DTensor."""
    return weight.to_local() if hasattr(weight, "to_local") else weight
