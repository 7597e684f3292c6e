"""Causal multi-head attention with rotary positions.

Shapes: B sequences, S positions, D d_model, H heads, C = D / H head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.model.kernels import Kernels
from upcycle.model.rope import rope_tables, rotate
from upcycle.model.stacks import own
from upcycle.study.shape import ModelSpec


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
        H = qkv.shape[2] // 3  # heads of this process: all, unless tensor parallel
        qk, v = qkv.split([2 * H, H], dim=2)  # q and k are turned together: fewer passes over memory
        qk = rotate(qk, *rope_tables(S, self.head_dim, self.rope_base, x_BSD.device))
        q, k = qk.chunk(2, dim=2)
        y_BHSC = self.kernels.attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return F.linear(y_BHSC.transpose(1, 2).flatten(2), own(self.wo))
