"""Causal multi-head attention with rotary positions.

Shapes: B sequences, S positions, D d_model, H heads, C = D / H head dimension.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.model.kernels import Kernels
from upcycle.model.stacks import own
from upcycle.study.spec import ModelSpec


@functools.lru_cache(maxsize=8)
def rope_tables(positions: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the rotary angles, each (S, 1, C) in float32, the same for every head.

    Pair i of C/2 turns by position * base^(-2i/C). The two halves of a head pair up (as in Llama), so
    columns i and i + C/2 share an angle; the first half's sines are negated, as `rotate` wants them.
    """
    frequencies = base ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(positions, device=device, dtype=torch.float32), frequencies).unsqueeze(1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + C/2) of x (..., S, H, C) by its angle: (a, b) -> (a cos - b sin, b cos + a sin)."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return x * cos.type_as(x) + swapped * sin.type_as(x)


class Attention(nn.Module):
    """Multi-head attention without biases; `wqkv` is the three projections stacked."""

    def __init__(self, model: ModelSpec, kernels: Kernels) -> None:
        super().__init__()
        self.n_head, self.head_dim, self.rope_base = model.n_head, model.head_dim, model.rope_base
        self.kernels = kernels
        self.wqkv = nn.Parameter(torch.empty(3 * model.d_model, model.d_model))
        self.wo = nn.Parameter(torch.empty(model.d_model, model.d_model))

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Mix positions: (B, S, D) -> (B, S, D), position s sees positions up to s."""
        B, S, _ = x_BSD.shape
        qkv = F.linear(x_BSD, own(self.wqkv).flatten(0, -2)).view(B, S, -1, self.head_dim)
        H = qkv.shape[2] // 3  # those of this process: all, unless tensor parallel
        qk, v = qkv.split([2 * H, H], dim=2)  # q and k are turned together: fewer passes over memory
        qk = rotate(qk, *rope_tables(S, self.head_dim, self.rope_base, x_BSD.device))
        q, k = qk.chunk(2, dim=2)
        y_BHSC = self.kernels.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return F.linear(y_BHSC.transpose(1, 2).flatten(2), own(self.wo))
