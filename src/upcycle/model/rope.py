"""Rotary positions: tables of angles, and the turn of queries and keys.

Shapes: S positions, H heads, C head dimension.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def rope_tables(positions: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the rotary angles, each (S, 1, C) in float32, the same for every head.

    Pair i of C/2 turns by position * base^(-2i/C). The two halves of a head pair up (as in Llama), so
    columns i and i + C/2 share an angle; the first half's sines are negated, as `rotate` wants them.
    """
    return _tables(positions, head_dim, base, device)


@functools.lru_cache(maxsize=8)
def _tables(positions: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    frequencies = base ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(positions, device=device, dtype=torch.float32), frequencies).unsqueeze(1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + C/2) of x (..., S, H, C) by its angle: (a, b) -> (a cos - b sin, b cos + a sin)."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return x * cos.type_as(x) + swapped * sin.type_as(x)
