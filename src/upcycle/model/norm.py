"""Root-mean-square norm, by the kernel of the run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upcycle.model.kernels import Kernels


class RMSNorm(nn.Module):
    """RMSNorm over the last dimension, of `width`, with a weight and no bias."""

    def __init__(self, width: int, eps: float, kernels: Kernels) -> None:
        super().__init__()
        self.eps, self.kernels = eps, kernels
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return self.kernels.rms_norm(x, self.weight, self.eps)
