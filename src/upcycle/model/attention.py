"""Causal attention with rotary positions; several heads of queries may share one of keys and values.

Shapes: B sequences, S positions, D d_model, C head dimension, G heads of keys and values, R queries for each of them,
H = R G heads of queries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upcycle.model.kernels import Kernels
from upcycle.model.norm import RMSNorm
from upcycle.model.rope import rope_tables, rotate
from upcycle.model.stacks import own
from upcycle.model.torch_kernels import tree_attention
from upcycle.study.shape import ModelSpec


class Tree(NamedTuple):
    """Sequences with a common beginning, in one row: the beginning once, then the rest of each."""

    position_BS: Tensor
    """Position of each token in its own sequence."""
    seen_BSS: Tensor
    """Whether token s (second index) sees token t (third index): those before it in its own sequence, and itself."""


class Attention(nn.Module):
    """Multi-head or grouped-query attention; `wqkv` ((R + 2) G C, D) is the projections stacked (`model/stacks.py`)."""

    def __init__(self, model: ModelSpec, kernels: Kernels) -> None:
        super().__init__()
        self.head_dim, self.sharing = model.head_dim, model.sharing
        self.rope_base, self.rope_scaling = model.rope_base, model.rope_scaling
        self.kernels = kernels
        self.wqkv = nn.Parameter(torch.empty(model.qkv_width, model.d_model))
        self.bqkv = nn.Parameter(torch.empty(model.qkv_width)) if model.qkv_bias else None
        self.q_norm = RMSNorm(model.head_dim, model.norm_eps, kernels) if model.qk_norm else None
        self.k_norm = RMSNorm(model.head_dim, model.norm_eps, kernels) if model.qk_norm else None
        self.wo = nn.Parameter(torch.empty(model.d_model, model.attention_width))

    def forward(self, x_BSD: Tensor, tree: Tree | None = None) -> Tensor:
        """Mix positions: (B, S, D) -> (B, S, D), position s sees positions up to s, or those of `tree`."""
        B, S, _ = x_BSD.shape
        R = self.sharing
        bias = None if self.bqkv is None else own(self.bqkv).flatten()
        qkv = F.linear(x_BSD, own(self.wqkv).flatten(0, -2), bias).view(B, S, -1, self.head_dim)
        G = qkv.shape[2] // (R + 2)  # heads of this process: all, unless tensor parallel
        tables = rope_tables(S, self.head_dim, self.rope_base, x_BSD.device, self.rope_scaling)
        if tree is not None:
            tables = tables[0][tree.position_BS], tables[1][tree.position_BS]
        if R == 1 and self.q_norm is None:
            qk, v = qkv.split([2 * G, G], dim=2)  # q and k are turned together: fewer passes over memory
            q, k = rotate(qk, *tables).chunk(2, dim=2)
        else:
            q, k, v = qkv.split([R * G, G, G], dim=2)
            if self.q_norm is not None and self.k_norm is not None:
                q, k = self.q_norm(q.float()).type_as(v), self.k_norm(k.float()).type_as(v)
            q, k = rotate(_swapped(q, R, G), *tables), rotate(k, *tables)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        y_BHSC = self.kernels.attention(q, k, v) if tree is None else tree_attention(q, k, v, tree.seen_BSS)
        return F.linear(_swapped(y_BHSC.transpose(1, 2), G, R).flatten(2), own(self.wo).flatten(1))


def _swapped(heads_BSHC: Tensor, major: int, minor: int) -> Tensor:
    """Heads in the order of (major, minor) into that of (minor, major): from the layout of `wqkv` and `wo`, (R, G), to
    that of every attention kernel, (G, R), and back."""
    if major == 1 or minor == 1:
        return heads_BSHC
    return heads_BSHC.unflatten(2, (major, minor)).transpose(2, 3).flatten(2, 3)
