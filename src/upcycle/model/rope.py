"""Rotary positions: tables of angles, and the turn of queries and keys.

Shapes: S positions, H heads, C head dimension.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from upcycle.study.shape import ModelSpec, RopeScaling

PAPERS_BASE = ModelSpec.model_fields["rope_base"].default


def rope_tables(
    positions: int, head_dim: int, base: float, device: torch.device, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the rotary angles, each (S, 1, C) in float32, the same for every head.

    Pair i of C/2 turns by position * base^(-2i/C), stretched as `scaling` has it. The two halves of a head pair up (as
    in Llama), so columns i and i + C/2 share an angle; the first half's sines are negated, as `rotate` wants them.
    """
    return _tables(positions, head_dim, base, device, scaling)


@functools.lru_cache(maxsize=8)
def _tables(
    positions: int, head_dim: int, base: float, device: torch.device, scaling: RopeScaling | None
) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    # An error in a frequency's last bit grows with the position: at 4,096 it moves logits by 6e-4 of the largest. So
    # frequencies are rounded as Hugging Face rounds them, but those of the paper's runs as they were trained with.
    frequencies = base**-exponents if base == PAPERS_BASE else 1 / base**exponents
    if scaling is not None:
        frequencies = _stretched(frequencies, scaling)
    angles = torch.outer(torch.arange(positions, device=device, dtype=torch.float32), frequencies).unsqueeze(1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def _stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Frequencies (C/2) for a longer context, as transformers' `modeling_rope_utils.py` has them by the same names."""
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    low, high, context = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_context
    assert low is not None
    assert high is not None
    assert context is not None
    turns = context / (2 * math.pi / frequencies)  # of each pair within the original context
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 0: stretched in full, 1: not
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + C/2) of x (..., S, H, C) by its angle: (a, b) -> (a cos - b sin, b cos + a sin)."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return x * cos.type_as(x) + swapped * sin.type_as(x)
